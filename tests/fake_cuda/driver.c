// Stand-in of NVIDIA's driver, libcuda: what is asked before a model is opened.
#include <stdlib.h>
#include <string.h>

enum { NO_DEVICE = 100, MAJOR = 75 };

static int setting(const char *name, int otherwise) {
  const char *text = getenv(name);
  return text && *text ? atoi(text) : otherwise;
}

int cuInit(unsigned flags) { return setting("FAKE_CUDA_GPUS", 1) ? 0 : NO_DEVICE; }
int cuDriverGetVersion(int *version) { *version = setting("FAKE_DRIVER_VERSION", 13000); return 0; }
int cuDeviceGetCount(int *count) { *count = setting("FAKE_CUDA_GPUS", 1); return 0; }
int cuDeviceGet(int *device, int index) { *device = index; return 0; }
int cuDeviceGetName(char *name, int size, int device) { strncpy(name, "Fake GPU", size); return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) { *value = attribute == MAJOR ? setting("FAKE_CUDA_MAJOR", 9) : 0; return 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = (size_t)setting("FAKE_CUDA_GIB", 40) << 30; return 0; }
int cuGetErrorName(int status, const char **name) { *name = status == NO_DEVICE ? "CUDA_ERROR_NO_DEVICE" : "CUDA_ERROR_UNKNOWN"; return 0; }
int cuGetErrorString(int status, const char **text) { return cuGetErrorName(status, text); }
