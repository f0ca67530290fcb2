// The four functions of the CUDA driver that torch asks for by name: libcuda.so.1 where there is no driver.
extern "C" {
int cuInit(unsigned) { return 0; }
int cuDriverGetVersion(int* version) { *version = 13000; return 0; }
int cuGetErrorString(int, const char** text) { *text = "pretended"; return 0; }
int cuDevicePrimaryCtxGetState(int, unsigned* flags, int* active) { *flags = 0; *active = 1; return 0; }
}
