// What the CPU and the system report of themselves. Compiled for any x86-64 CPU; ops/build.py chooses a library by it.
#include <cpuid.h>
#include <stdint.h>

// Writes the registers in which CPUID reports instructions, and which registers the system saves when it switches between threads (XCR0).
// Those of a leaf that the CPU does not have are 0. The order is that of CPU_WORDS of ops/build.py.
extern "C" void read_cpu(uint32_t words[8]) {
    uint32_t eax, ebx, ecx, edx;
    for (int i = 0; i < 8; i++) words[i] = 0;
    if (__get_cpuid(1, &eax, &ebx, &ecx, &edx)) words[0] = ecx;
    if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) {
        words[1] = ebx, words[2] = ecx, words[3] = edx;
        if (eax >= 1 && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx)) words[4] = eax;
    }
    if (__get_cpuid(0x80000001, &eax, &ebx, &ecx, &edx)) words[5] = ecx;
    if (words[0] & 1u << 27) __asm__ volatile("xgetbv" : "=a"(words[6]), "=d"(edx) : "c"(0));  // OSXSAVE: the instruction exists
    if (__get_cpuid(0, &eax, &ebx, &ecx, &edx)) words[7] = ebx;
}
