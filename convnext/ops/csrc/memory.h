// Scratch buffers of a thread.
#pragma once
#include <stddef.h>
#include <stdlib.h>
#include <sys/mman.h>

// Grows on demand and is freed when its thread ends. In pages of 2 MB, if the system has them.
struct ScratchBuffer {
    void *begin = nullptr;
    size_t size = 0;
    ~ScratchBuffer() { free(begin); }

    void *reserve(size_t bytes) {  // returns null if memory runs out
        if (bytes <= size) return begin;
        const size_t page = 2 << 20;
        free(begin);
        size = (bytes + page - 1) / page * page;
        begin = aligned_alloc(page, size);
        if (begin) madvise(begin, size, MADV_HUGEPAGE);
        else size = 0;
        return begin;
    }
};

// Per-thread scratch buffer, reused across calls, since new memory costs a page fault every 4 KB. SLOT selects one of several.
template <int SLOT = 0> inline void *scratch_buffer(size_t bytes) {
    static thread_local ScratchBuffer buffer;
    return buffer.reserve(bytes);
}
