// A pretended CUDA runtime with one H100 (PRETENDED_GPUS: so many) whose kernels do nothing: for tracing with FakeTensorMode only.
// PRETENDED_DRIVER=12040 is a driver for CUDA 12.4, too old for this torch; PRETENDED_MEMORY_GIB=40 another card.
// PRETENDED_SAY=1 names on standard error the calls that a real card would have worked on.
#include <cuda_runtime_api.h>
#include <cstdio>
#include <cstdlib>
#include <cstring>

static size_t card_bytes() {
  const char* asked = getenv("PRETENDED_MEMORY_GIB");
  return asked ? (size_t)atoi(asked) << 30 : 85017755648ull;  // of an H100 with 80 GB
}
static int driver_version() {
  const char* asked = getenv("PRETENDED_DRIVER");
  return asked ? atoi(asked) : 13000;
}

static cudaError_t say(const char* name) {
  if (getenv("PRETENDED_SAY")) fprintf(stderr, "[pretended] %s\n", name);
  return cudaSuccess;
}

static cudaError_t handle(void** made) { *made = calloc(1, 64); return cudaSuccess; }
static cudaError_t memory(void** made, size_t bytes) { *made = aligned_alloc(512, (bytes + 511) / 512 * 512); return cudaSuccess; }

extern "C" {
// The device
cudaError_t cudaGetDeviceCount(int* count) {
  const char* asked = getenv("PRETENDED_GPUS");
  *count = asked ? atoi(asked) : 1;
  if (*count == 0) return cudaErrorNoDevice;
  return driver_version() < 13000 ? cudaErrorInsufficientDriver : cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) { *device = 0; return cudaSuccess; }
cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaDriverGetVersion(int* version) { *version = driver_version(); return cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int* version) { *version = 13000; return cudaSuccess; }
cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t cudaPeekAtLastError() { return cudaSuccess; }
cudaError_t cudaDeviceSynchronize() { return say("cudaDeviceSynchronize"); }
cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) { *can = 0; return cudaSuccess; }
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrComputeCapabilityMajor ? 9 : attribute == cudaDevAttrMultiProcessorCount ? 132 : 0;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* device, int) {
  memset(device, 0, sizeof *device);
  strcpy(device->name, "Pretended H100");
  device->major = 9;
  device->multiProcessorCount = 132;
  device->totalGlobalMem = card_bytes();
  device->warpSize = 32;
  device->maxThreadsPerMultiProcessor = 2048;
  device->maxThreadsPerBlock = 1024;
  device->maxThreadsDim[0] = device->maxThreadsDim[1] = 1024;
  device->maxThreadsDim[2] = 64;
  device->maxGridSize[0] = 2147483647;
  device->maxGridSize[1] = device->maxGridSize[2] = 65535;
  device->regsPerMultiprocessor = 65536;
  device->sharedMemPerBlock = 49152;
  device->sharedMemPerBlockOptin = 232448;
  device->sharedMemPerMultiprocessor = 233472;
  device->l2CacheSize = 52428800;
  return cudaSuccess;
}

// Streams and events
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) { *least = 0; *greatest = -5; return cudaSuccess; }
cudaError_t cudaStreamCreate(cudaStream_t* stream) { return handle((void**)stream); }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) { return handle((void**)stream); }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned, int) { return handle((void**)stream); }
cudaError_t cudaStreamQuery(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t) { return say("cudaStreamSynchronize"); }
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return cudaSuccess; }
cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t, cudaStreamCaptureStatus* status, unsigned long long* id, cudaGraph_t*,
                                     const cudaGraphNode_t**, const cudaGraphEdgeData**, size_t*) {
  *status = cudaStreamCaptureStatusNone;
  if (id) *id = 0;
  return cudaSuccess;
}
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*) { return cudaSuccess; }
cudaError_t cudaEventCreate(cudaEvent_t* event) { return handle((void**)event); }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) { return handle((void**)event); }
cudaError_t cudaEventDestroy(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return cudaSuccess; }
cudaError_t cudaEventRecordWithFlags(cudaEvent_t, cudaStream_t, unsigned) { return cudaSuccess; }
cudaError_t cudaEventQuery(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t, cudaEvent_t) { *milliseconds = 1; return cudaSuccess; }

// Memory: the machine's own
cudaError_t cudaMemGetInfo(size_t* left, size_t* total) { *total = card_bytes(); *left = *total - (1ull << 30); return cudaSuccess; }
cudaError_t cudaMalloc(void** made, size_t bytes) { say("cudaMalloc"); return memory(made, bytes); }
cudaError_t cudaFree(void*) { return cudaSuccess; }
cudaError_t cudaHostAlloc(void** made, size_t bytes, unsigned) { return memory(made, bytes); }
cudaError_t cudaFreeHost(void*) { return cudaSuccess; }
cudaError_t cudaHostRegister(void*, size_t, unsigned) { return cudaSuccess; }
cudaError_t cudaHostUnregister(void*) { return cudaSuccess; }
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) { memcpy(to, from, bytes); return cudaSuccess; }
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  memcpy(to, from, bytes);
  return say("cudaMemcpyAsync");
}
cudaError_t cudaMemset(void* to, int value, size_t bytes) { memset(to, value, bytes); return cudaSuccess; }
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) { memset(to, value, bytes); return cudaSuccess; }
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void*) {
  memset(attributes, 0, sizeof *attributes);
  attributes->type = cudaMemoryTypeUnregistered;
  return cudaSuccess;
}

// Kernels
cudaError_t cudaLaunchKernel(const void*, dim3, dim3, void**, size_t, cudaStream_t) { return say("cudaLaunchKernel"); }
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t*, const void*, void**) { return say("cudaLaunchKernelExC"); }
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  memset(attributes, 0, sizeof *attributes);
  attributes->maxThreadsPerBlock = 1024;
  attributes->binaryVersion = attributes->ptxVersion = 90;
  return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void*, int, size_t, unsigned) {
  *blocks = 2;
  return cudaSuccess;
}
}

namespace c10 { namespace cuda { bool hasPrimaryContext(signed char) { return true; } } }
