/* CUDA's driver in host memory, as far as the engines call it: what cuda-python finds in place of libcuda.so.1. */
#include <stdlib.h>
#include <string.h>

typedef unsigned long long Address;
typedef struct {
    size_t srcXInBytes, srcY; int srcMemoryType; const void *srcHost; Address srcDevice; void *srcArray; size_t srcPitch;
    size_t dstXInBytes, dstY; int dstMemoryType; void *dstHost; Address dstDevice; void *dstArray; size_t dstPitch;
    size_t WidthInBytes, Height;
} Copy2D;

int cuInit(unsigned flags) { return 0; }
int cuDriverGetVersion(int *version) { *version = 12060; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return 0; }
int cuDeviceGetName(char *name, int size, int device) { strncpy(name, "Orin", size); return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 75 ? 8 : attribute == 76 ? 7 : attribute == 16 ? 8 : attribute == 18;
    return 0;
}
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = (void *)1; return 0; }
int cuCtxSetCurrent(void *context) { return context == (void *)1 ? 0 : 201; }
int cuMemGetInfo_v2(size_t *left, size_t *total) { *left = 1 << 20; *total = 1 << 21; return 0; }
int cuGetErrorString(int status, const char **text) { *text = "out of luck"; return 0; }
int cuStreamCreate(void **stream, unsigned flags) { *stream = (void *)7; return flags == 1 ? 0 : 1; }
int cuStreamDestroy_v2(void *stream) { return 0; }
int cuStreamSynchronize(void *stream) { return stream == (void *)7 ? 0 : 400; }
int cuMemAlloc_v2(Address *address, size_t size) {
    if (size > 1 << 20) return 2;
    *address = (Address)malloc(size);
    return 0;
}
int cuMemFree_v2(Address address) { free((void *)address); return 0; }
int cuMemHostAlloc(void **address, size_t size, unsigned flags) { *address = malloc(size); return flags & ~2; }
int cuMemHostGetDevicePointer_v2(Address *address, void *host, unsigned flags) { *address = (Address)host; return flags; }
int cuMemFreeHost(void *address) { free(address); return 0; }
int cuMemsetD8Async(Address to, unsigned char value, size_t size, void *stream) { memset((void *)to, value, size); return 0; }
int cuMemcpyHtoDAsync_v2(Address to, const void *from, size_t size, void *stream) { memcpy((void *)to, from, size); return 0; }
int cuMemcpyDtoHAsync_v2(void *to, Address from, size_t size, void *stream) { memcpy(to, (void *)from, size); return 0; }
int cuMemcpy2DAsync_v2(const Copy2D *copy, void *stream) {
    if (copy->srcMemoryType != 2 || copy->dstMemoryType != 2) return 1;
    for (size_t i = 0; i < copy->Height; i++)
        memcpy((char *)copy->dstDevice + i * copy->dstPitch, (char *)copy->srcDevice + i * copy->srcPitch, copy->WidthInBytes);
    return 0;
}
int cuStreamBeginCapture_v2(void *stream, int mode) { return mode == 1 ? 0 : 1; }
int cuStreamEndCapture(void *stream, void **graph) { *graph = (void *)3; return 0; }
int cuGraphInstantiateWithFlags(void **made, void *graph, unsigned long long flags) { *made = (void *)4; return 0; }
int cuGraphInstantiate_v2(void **made, void *graph, void *node, char *log, size_t size) { *made = (void *)4; return 0; }
int cuGraphLaunch(void *graph, void *stream) { return graph == (void *)4 ? 0 : 1; }
int cuGraphDestroy(void *graph) { return 0; }
int cuGraphExecDestroy(void *graph) { return 0; }
