// Memory for intermediate results, kept from call to call.
#pragma once
#include <cstdint>
#include <cstdlib>

namespace {

// Carves aligned arrays out of one piece of memory; without one it counts their bytes.
struct Carver {
    char* next;
    int64_t bytes = 0;

    template <class T> T* take(int64_t count) {
        const int64_t size = (count * (int64_t)sizeof(T) + 63) / 64 * 64;
        T* taken = (T*)next;
        if (next) next += size;
        bytes += size;
        return taken;
    }
};

// What one thread of the caller's has used so far; freed with the thread.
class Arena {
  public:
    ~Arena() { free(data); }

    // Null where there is not enough memory.
    char* at_least(int64_t bytes) {
        if (!data || bytes > size) {
            free(data);
            size = bytes / 64 * 64 + 64;  // never 0, of which there may be none
            data = (char*)aligned_alloc(64, size);
            if (!data) size = 0;
        }
        return data;
    }

  private:
    char* data = nullptr;
    int64_t size = 0;
};

}  // namespace
