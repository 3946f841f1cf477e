// Stand-in of libcudart: memory is the CPU's, copies copy, and everything else succeeds.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "driver_types.h"

#define GIB ((size_t)1 << 30)
// Before each block of memory, in which CUDA aligns to 256 bytes.
#define HEADER 256
// Larger blocks are counted, and are no memory: they are taken to leave none to others.
#define REAL (GIB / 2)

static size_t used;

static size_t setting(const char *name, size_t otherwise) {
  const char *text = getenv(name);
  return text && *text ? strtoull(text, NULL, 10) : otherwise;
}
static size_t total(void) { return setting("FAKE_CUDA_MEMORY", 40 * GIB); }
// An illegal address is one of the errors after which everything fails until the context is made again.
static int broken(void) {
  const char *file = getenv("FAKE_CUDA_BROKEN_FILE");
  return file && access(file, F_OK) == 0 ? cudaErrorIllegalAddress : cudaSuccess;
}

int cudaGetDeviceCount(int *count) { *count = (int)setting("FAKE_CUDA_GPUS", 1); return 0; }
int cudaGetDevice(int *device) { *device = 0; return 0; }
int cudaGetDeviceProperties(struct cudaDeviceProp *p, int device) {
  memset(p, 0, sizeof *p);
  strcpy(p->name, "Fake GPU");
  p->major = 9;
  p->multiProcessorCount = 132;
  p->totalGlobalMem = total();
  p->maxThreadsPerBlock = p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
  p->maxThreadsDim[2] = 64;
  p->warpSize = 32;
  p->sharedMemPerBlock = 48 << 10;
  p->sharedMemPerBlockOptin = p->sharedMemPerMultiprocessor = 227 << 10;
  p->regsPerBlock = p->regsPerMultiprocessor = 65536;
  p->maxThreadsPerMultiProcessor = 2048;
  p->maxGridSize[0] = 2147483647;
  p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  return 0;
}
int cudaDeviceGetAttribute(int *value, int attribute, int device) {
  struct cudaDeviceProp p;
  cudaGetDeviceProperties(&p, device);
  *value = attribute == cudaDevAttrComputeCapabilityMajor ? p.major
         : attribute == cudaDevAttrMultiProcessorCount ? p.multiProcessorCount
         : attribute == cudaDevAttrMaxThreadsPerBlock ? p.maxThreadsPerBlock
         : attribute == cudaDevAttrMaxSharedMemoryPerBlockOptin ? (int)p.sharedMemPerBlockOptin : 0;
  return 0;
}
int cudaRuntimeGetVersion(int *version) { *version = (int)setting("FAKE_CUDA_VERSION", 13000); return 0; }
int cudaDriverGetVersion(int *version) { *version = (int)setting("FAKE_DRIVER_VERSION", 13000); return 0; }
const char *cudaGetErrorString(int status) { return status == cudaErrorMemoryAllocation ? "out of memory" : "an error of the stand-in"; }
const char *cudaGetErrorName(int status) { return status == cudaErrorMemoryAllocation ? "cudaErrorMemoryAllocation" : "cudaErrorOfTheStandIn"; }

int cudaMemGetInfo(size_t *left, size_t *all) { *all = total(); *left = *all - used; return 0; }
int cudaMalloc(void **block, size_t size) {
  *block = NULL;
  if (broken()) return broken();
  if (used + size > total()) return cudaErrorMemoryAllocation;
  size_t real = size < REAL ? size : 0;
  char *whole = aligned_alloc(HEADER, (real + 2 * HEADER - 1) / HEADER * HEADER);
  if (!whole) return cudaErrorMemoryAllocation;
  *(size_t *)whole = size;
  used += size;
  memset(whole + HEADER, 0, real);
  *block = whole + HEADER;
  return 0;
}
int cudaFree(void *block) {
  if (block) {
    char *whole = (char *)block - HEADER;
    used -= *(size_t *)whole;
    free(whole);
  }
  return 0;
}
int cudaMallocHost(void **block, size_t size) { *block = aligned_alloc(HEADER, (size + HEADER - 1) / HEADER * HEADER); return *block ? 0 : 2; }
int cudaHostAlloc(void **block, size_t size, unsigned flags) { return cudaMallocHost(block, size); }
int cudaFreeHost(void *block) { free(block); return 0; }
int cudaMemcpy(void *to, const void *from, size_t size, int kind) { if (!broken()) memmove(to, from, size); return broken(); }
int cudaMemcpyAsync(void *to, const void *from, size_t size, int kind, void *stream) { return cudaMemcpy(to, from, size, kind); }
int cudaMemset(void *to, int value, size_t size) { memset(to, value, size); return 0; }
int cudaMemsetAsync(void *to, int value, size_t size, void *stream) { return cudaMemset(to, value, size); }
int cudaStreamSynchronize(void *stream) { return broken(); }
int cudaDeviceSynchronize(void) { return broken(); }
int cudaLaunchKernel(const void *kernel, struct { unsigned x, y, z; } grid, struct { unsigned x, y, z; } block, void **arguments, size_t shared, void *stream) { return broken(); }

// Handles are never looked into.
int cudaStreamCreate(void **stream) { *stream = (void *)16; return 0; }
int cudaStreamCreateWithFlags(void **stream, unsigned flags) { return cudaStreamCreate(stream); }
int cudaEventCreate(void **event) { *event = (void *)32; return 0; }
int cudaEventCreateWithFlags(void **event, unsigned flags) { return cudaEventCreate(event); }
int cudaStreamIsCapturing(void *stream, int *status) { *status = 0; return 0; }
// A CUDA graph captures nothing, and its launch does nothing.
int cudaStreamEndCapture(void *stream, void **graph) { *graph = (void *)48; return 0; }
int cudaGraphInstantiate(void **executable, void *graph, unsigned long long flags) { *executable = (void *)64; return 0; }
int cudaGetDriverEntryPointByVersion(const char *name, void **function, unsigned version, unsigned long long flags, void *result) { *function = NULL; return 0; }
int cudaPointerGetAttributes(struct cudaPointerAttributes *attributes, const void *pointer) { memset(attributes, 0, sizeof *attributes); return 0; }
void **__cudaRegisterFatBinary(void *binary) { static void *handle[4]; return handle; }
