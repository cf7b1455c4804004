// Scratch memory of a thread.
#pragma once
#include <stddef.h>
#include <stdlib.h>
#include <sys/mman.h>

// Grows, and is freed when its thread ends. Memory of 2 MB pages, if the system has them.
struct Memory {
    void *begin = nullptr;
    size_t size = 0;
    ~Memory() { free(begin); }

    void *at_least(size_t bytes) {  // null if memory ran out
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

// Memory of this thread that stays from call to call, one piece for each number: fresh memory costs a page fault every 4 KB.
template <int NUMBER = 0> inline void *workspace(size_t bytes) {
    static thread_local Memory memory;
    return memory.at_least(bytes);
}
