# JetPack 7: the driver takes NVIDIA's images for Arm servers. The image's TensorRT is what counts, and not JetPack's: below
# 10.15 the lowered graph is built. The image below is of CUDA 13.0 and TensorRT 10.13, for Thor from JetPack 7.0 on. An Orin,
# on 7.2, wants a later one, up to CUDA 13.2, whose notes name it: --build-arg BASE=nvcr.io/nvidia/tensorrt:TAG.
# On the board, with this file beside the bundle that ppd-export wrote, which holds the wheel:
#
#   docker build -t ppd -f jetson-jp7.Dockerfile BUNDLE
#   docker run --rm -it --runtime nvidia -v "$PWD/BUNDLE:/bundle" ppd selftest /bundle
ARG BASE=nvcr.io/nvidia/tensorrt:25.09-py3
FROM ${BASE}

RUN apt-get update \
    && apt-get install -y --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv --system-site-packages /opt/ppd
# Some of NVIDIA's images hold pip to versions of their own.
ENV PATH=/opt/ppd/bin:${PATH} XDG_CACHE_HOME=/bundle/.cache PIP_CONSTRAINT=
COPY ppd_edge-*.whl /tmp/
RUN pip install --no-cache-dir "$(ls /tmp/ppd_edge-*.whl)[tensorrt-jetson]" "cuda-python>=13,<13.1" \
    && python -c "import importlib.util as i; assert i.find_spec('tensorrt'), 'no Python module of TensorRT'" \
    && ppd --version
ENTRYPOINT ["ppd"]
