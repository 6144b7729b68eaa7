# cramjax on an NVIDIA GPU. The plugin of JAX brings CUDA and cuDNN with it, so that the image needs
# neither; the host needs its driver (580 or newer for CUDA 13) and the NVIDIA Container Toolkit.
#
#   docker build -t cramjax .
#   docker run --gpus all --shm-size=1g -v "$PWD":/work cramjax train --config quickstart
#
# For an older driver: docker build --build-arg CUDA=cuda12 -t cramjax .
FROM python:3.13-slim AS build
ARG CUDA=cuda13
COPY . /source
RUN python -m venv /venv && /venv/bin/pip install --no-cache-dir "/source[$CUDA]"

FROM python:3.13-slim
COPY --from=build /venv /venv
# Commands write to the folder that is mounted here, as any user.
ENV PATH=/venv/bin:$PATH HOME=/tmp
WORKDIR /work
ENTRYPOINT ["cramjax"]
CMD ["doctor"]
