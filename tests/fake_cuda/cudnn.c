// Stand-in of cuDNN 9: every descriptor can be made, every plan exists and needs no workspace, nothing is computed.
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

size_t cudnnGetVersion(void) { return 90300; }
size_t cudnnGetCudartVersion(void) {
  const char *text = getenv("FAKE_CUDNN_FOR");
  return text && *text ? strtoull(text, NULL, 10) : 13000;
}
const char *cudnnGetErrorString(int status) { return "an error of the stand-in"; }
void cudnnGetLastErrorString(char *text, size_t size) { if (size) *text = 0; }
int cudnnBackendCreateDescriptor(int kind, void **descriptor) { *descriptor = malloc(16); return 0; }
int cudnnBackendDestroyDescriptor(void *descriptor) { free(descriptor); return 0; }
int cudnnBackendGetAttribute(void *descriptor, int name, int type, int64_t requested, int64_t *count, void *elements) {
  enum { INT64 = 3, INT32 = 23, NUMERICAL_NOTE = 1303, BEHAVIOR_NOTE = 1305 };
  // One plan, whose descriptor the caller has made, and sizes of 0; none of the notes that a caller may object to.
  if (count) *count = name != NUMERICAL_NOTE && name != BEHAVIOR_NOTE;
  if (elements && requested && type == INT64) *(int64_t *)elements = 0;
  if (elements && requested && type == INT32) *(int32_t *)elements = 0;
  return 0;
}
