# malt-jax on NVIDIA GPUs. NOT BUILT YET: no machine with docker was at hand.
#
#   docker build -t malt-jax .
#   mkdir -p runs && chmod a+rwx runs
#   docker run --rm --gpus all -v "$PWD/runs:/home/malt/runs" malt-jax run --config quickstart --output-dir runs/quickstart
#
# The wheels of jax[cuda13] bring CUDA with them, so the image needs no CUDA of its own; the host needs the
# NVIDIA driver (580 or newer) and the NVIDIA container toolkit.
FROM python:3.12-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE MANIFEST.in ./
COPY malt_jax malt_jax
RUN pip wheel --no-deps --no-cache-dir --wheel-dir /wheels .

FROM python:3.12-slim
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir "$(ls /wheels/malt_jax-*.whl)[cuda,serve]" && rm -r /wheels \
    && useradd --uid 1000 --create-home malt && mkdir /home/malt/runs && chown malt /home/malt/runs
USER malt
WORKDIR /home/malt
ENV HF_HOME=/home/malt/runs/.huggingface
ENTRYPOINT ["malt"]
CMD ["--help"]
