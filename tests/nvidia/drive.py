"""Runs every call that engines make of CUDA's driver, through whatever cuda-python is installed."""

import numpy as np

from ppd.errors import EngineError
from ppd.runtime.engines.cuda.cache import DeviceCache
from ppd.runtime.engines.cuda.calls import Cuda
from ppd.runtime.engines.cuda.device import current_gpu

gpu = current_gpu()
assert (gpu.name, gpu.compute_capability, gpu.num_multiprocessors, gpu.integrated) == ("Orin", "8.7", 8, True), gpu
assert (gpu.cuda, gpu.total_bytes) == ("12.6", 1 << 21), gpu
cuda = Cuda()
assert cuda.stream == 7
source, result = cuda.allocate_pinned(1024), cuda.allocate_pinned(1024)
source[:] = np.arange(1024) % 251
shared, shared_address = cuda.allocate_shared(1024)
assert shared_address == shared.ctypes.data
address = cuda.allocate(1024, "a test")
cuda.copy_to_device(address, source)
cuda.copy_strided(address + 512, 64, address, 64, 32, 8)
cuda.copy_to_host(result, address)
cuda.synchronize()
assert (result[:512] == source[:512]).all()
assert (result[512:].reshape(8, 64)[:, :32] == source[:512].reshape(8, 64)[:, :32]).all()
cache = DeviceCache(cuda, 2, 2, 128, 8)
cache.commit(10, [0, 2])
cache.resize(64, 20)
cuda.begin_capture()
graph = cuda.end_capture()
assert graph is not None
cuda.launch(graph)
cuda.drop_graph(graph)
cuda.free(address)
refused = ""
try:
    cuda.allocate(1 << 30, "a giant")
except EngineError as error:
    refused = str(error)
assert "no 1,024 MiB left for a giant" in refused, refused
cuda.close()
print("all calls passed")
