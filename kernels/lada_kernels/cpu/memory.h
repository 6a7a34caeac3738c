// Memory for intermediate results, kept from call to call.
#pragma once
#include <cstdint>
#include <cstdlib>

namespace {

constexpr int64_t ALIGNMENT = 64;  // a cache line, and the row of an AMX tile

// Bump allocator of aligned arrays in one block of memory; without a block it counts their bytes.
struct BumpAllocator {
    char* next;
    int64_t bytes = 0;

    template <class T> T* allocate(int64_t count) {
        const int64_t bytes_needed = count * (int64_t)sizeof(T);
        const int64_t size = (bytes_needed + (ALIGNMENT - 1)) / ALIGNMENT * ALIGNMENT;
        T* array = (T*)next;
        if (next) next += size;
        bytes += size;
        return array;
    }
};

// Block of memory that grows to the largest size requested and is freed with its thread.
class Workspace {
  public:
    ~Workspace() { free(data); }

    // Block of at least this size, or null where there is not enough memory.
    char* at_least(int64_t bytes) {
        if (!data || bytes > size) {
            free(data);
            size = bytes / ALIGNMENT * ALIGNMENT + ALIGNMENT;  // not 0, which may allocate nothing
            data = (char*)aligned_alloc(ALIGNMENT, size);
            if (!data) size = 0;
        }
        return data;
    }

  private:
    char* data = nullptr;
    int64_t size = 0;
};

}  // namespace
