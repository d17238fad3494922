// A stand-in for libcuda.so.1: the driver calls that SemiPD makes, over host memory. Compiled against NVIDIA's cuda.h, so
// a function whose signature is not NVIDIA's does not compile. It keeps the driver's rules that our code leans on:
//   * memory below 2 MiB lies side by side in one piece, and a handle opens the whole piece;
//   * a handle opens in every process but its maker, and as long as the maker lives;
//   * a client whose MPS daemon is not there runs on with the whole device, and no error;
//   * an MPS percentage takes whole pairs of SMs.
#include <cuda.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <map>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

namespace {

constexpr size_t PIECE = 2 << 20;
constexpr size_t MEMORY = size_t{256} << 20;
constexpr int SMS = 132;

struct Handle {
    char magic[8];
    int pid, fd;
    size_t size;
};
static_assert(sizeof(Handle) <= sizeof(CUipcMemHandle));

struct Piece {
    int fd;
    size_t size, used;
};
std::map<CUdeviceptr, Piece> pieces;  // by their first address
size_t taken = 0;
bool started = false;

CUdeviceptr map(int fd, size_t size) {
    void *at = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    return at == MAP_FAILED ? 0 : reinterpret_cast<CUdeviceptr>(at);
}

}  // namespace

extern "C" {

CUresult CUDAAPI cuInit(unsigned int flags) {
    if (flags != 0) return CUDA_ERROR_INVALID_VALUE;
    if (const char *code = getenv("STUB_INIT")) return static_cast<CUresult>(atoi(code));
    started = true;
    return CUDA_SUCCESS;
}

CUresult CUDAAPI cuDeviceGet(CUdevice *device, int ordinal) {
    if (!started) return CUDA_ERROR_NOT_INITIALIZED;
    if (ordinal != 0) return CUDA_ERROR_INVALID_DEVICE;
    *device = 0;
    return CUDA_SUCCESS;
}

CUresult CUDAAPI cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
    if (!started) return CUDA_ERROR_NOT_INITIALIZED;
    if (device != 0) return CUDA_ERROR_INVALID_DEVICE;
    if (attribute != CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT) return CUDA_ERROR_INVALID_VALUE;
    *value = SMS;
    const char *folder = getenv("CUDA_MPS_PIPE_DIRECTORY"), *percent = getenv("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE");
    char control[4096];
    snprintf(control, sizeof control, "%s/control", folder ? folder : "/tmp/nvidia-mps");
    if (percent && access(control, F_OK) == 0) *value = SMS * atoi(percent) / 200 * 2;
    return CUDA_SUCCESS;
}

CUresult CUDAAPI cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
    if (device != 0) return CUDA_ERROR_INVALID_DEVICE;
    if (const char *code = getenv("STUB_CONTEXT")) return static_cast<CUresult>(atoi(code));
    *context = reinterpret_cast<CUcontext>(&pieces);
    return CUDA_SUCCESS;
}

CUresult CUDAAPI cuDevicePrimaryCtxRelease(CUdevice device) {
    return device == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

CUresult CUDAAPI cuGetErrorName(CUresult error, const char **name) {
    switch (error) {
        case CUDA_ERROR_OUT_OF_MEMORY: *name = "CUDA_ERROR_OUT_OF_MEMORY"; return CUDA_SUCCESS;
        case CUDA_ERROR_INVALID_VALUE: *name = "CUDA_ERROR_INVALID_VALUE"; return CUDA_SUCCESS;
        case CUDA_ERROR_INVALID_CONTEXT: *name = "CUDA_ERROR_INVALID_CONTEXT"; return CUDA_SUCCESS;
        case CUDA_ERROR_INVALID_HANDLE: *name = "CUDA_ERROR_INVALID_HANDLE"; return CUDA_SUCCESS;
        default: return CUDA_ERROR_INVALID_VALUE;
    }
}

CUresult CUDAAPI cuMemAlloc(CUdeviceptr *pointer, size_t bytes) {
    if (pointer == nullptr || bytes == 0) return CUDA_ERROR_INVALID_VALUE;
    if (bytes < PIECE)
        for (auto &[first, piece] : pieces)
            if (piece.size == PIECE && piece.used + bytes <= PIECE) {
                *pointer = first + piece.used;
                piece.used += (bytes + 511) / 512 * 512;
                return CUDA_SUCCESS;
            }
    size_t size = (bytes + PIECE - 1) / PIECE * PIECE;
    if (size > MEMORY - taken) return CUDA_ERROR_OUT_OF_MEMORY;
    int fd = memfd_create("stub", 0);
    if (fd < 0 || ftruncate(fd, static_cast<off_t>(size)) != 0) return CUDA_ERROR_UNKNOWN;
    CUdeviceptr first = map(fd, size);
    memset(reinterpret_cast<void *>(first), 0xff, size);  // NaN, or a very wrong number, where nobody has written
    pieces[first] = {fd, size, (bytes + 511) / 512 * 512};
    taken += size;
    *pointer = first;
    return CUDA_SUCCESS;
}

CUresult CUDAAPI cuIpcGetMemHandle(CUipcMemHandle *handle, CUdeviceptr pointer) {
    auto after = pieces.upper_bound(pointer);
    if (handle == nullptr || after == pieces.begin()) return CUDA_ERROR_INVALID_VALUE;
    const Piece &piece = std::prev(after)->second;
    Handle ours{"stubipc", getpid(), piece.fd, piece.size};
    memset(handle, 0, sizeof *handle);
    memcpy(handle->reserved, &ours, sizeof ours);
    return CUDA_SUCCESS;
}

CUresult CUDAAPI cuIpcOpenMemHandle(CUdeviceptr *pointer, CUipcMemHandle handle, unsigned int flags) {
    Handle ours;
    memcpy(&ours, handle.reserved, sizeof ours);
    if (flags != CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS || memcmp(ours.magic, "stubipc", 8) != 0)
        return CUDA_ERROR_INVALID_VALUE;
    if (ours.pid == getpid()) return CUDA_ERROR_INVALID_CONTEXT;
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/fd/%d", ours.pid, ours.fd);
    int fd = open(path, O_RDWR);
    if (fd < 0) return CUDA_ERROR_INVALID_HANDLE;
    *pointer = map(fd, ours.size);
    close(fd);
    return *pointer ? CUDA_SUCCESS : CUDA_ERROR_UNKNOWN;
}

}  // extern "C"
