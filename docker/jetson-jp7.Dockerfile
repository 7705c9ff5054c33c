# JetPack 7, Thor and Orin: the driver takes NVIDIA's images for Arm servers. The image's TensorRT is what counts, and not
# JetPack's: below 10.15 the lowered graph is built. 7.0 and 7.1 take images of CUDA 13.0, 7.2 those up to 13.2.
#
#   docker build -t ppd -f docker/jetson-jp7.Dockerfile BUNDLE          # the folder with the wheel, made by ppd-export
#   docker run --rm -it --runtime nvidia -v BUNDLE:/bundle ppd selftest /bundle
ARG BASE=nvcr.io/nvidia/tensorrt:25.09-py3
FROM ${BASE}

RUN apt-get update \
    && apt-get install -y --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv --system-site-packages /opt/ppd
ENV PATH=/opt/ppd/bin:${PATH} XDG_CACHE_HOME=/bundle/.cache
COPY ppd_edge-*.whl /tmp/
RUN pip install --no-cache-dir "$(ls /tmp/ppd_edge-*.whl)[tensorrt-jetson]" "cuda-python>=13,<13.1" \
    && python -c "import tensorrt; print('TensorRT', tensorrt.__version__)" \
    && ppd --version
ENTRYPOINT ["ppd"]
