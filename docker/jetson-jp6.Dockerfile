# JetPack 6.1 and 6.2: CUDA 12.6 and TensorRT 10.3 with its Python module are in NVIDIA's image; the driver is the board's.
# On the board, with this file beside the bundle that ppd-export wrote, which holds the wheel:
#
#   docker build -t ppd -f jetson-jp6.Dockerfile BUNDLE
#   docker run --rm -it --runtime nvidia -v "$PWD/BUNDLE:/bundle" ppd selftest /bundle
ARG BASE=nvcr.io/nvidia/l4t-jetpack:r36.4.0
FROM ${BASE}

RUN apt-get update \
    && apt-get install -y --no-install-recommends python3-venv python3-libnvinfer \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv --system-site-packages /opt/ppd
ENV PATH=/opt/ppd/bin:${PATH} XDG_CACHE_HOME=/bundle/.cache
COPY ppd_edge-*.whl /tmp/
# TensorRT is found and not imported: it wants the board's libnvdla_compiler.so, which --runtime nvidia brings.
RUN pip install --no-cache-dir "$(ls /tmp/ppd_edge-*.whl)[tensorrt-jetson]" "cuda-python>=12.6.2.post1,<12.9" \
    && python -c "import importlib.util as i; assert i.find_spec('tensorrt'), 'no Python module of TensorRT'" \
    && ppd --version
ENTRYPOINT ["ppd"]
