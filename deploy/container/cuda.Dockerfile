# pleach with CUDA kernels, for NVIDIA GPUs of compute capability 8.0 and later. The same program runs on the CPU where
# there is no GPU.
#
#   docker build -f deploy/container/cuda.Dockerfile -t pleach:cuda .
#   docker run --gpus all -p 127.0.0.1:8000:8000 -e PLEACH_API_KEY=... -v pleach:/var/lib/pleach pleach:cuda

# As in rust-toolchain.toml.
ARG RUST_VERSION=1.95.0
# The release that tools/fetch-nvcc fetches too; its code needs driver R580 or newer.
ARG CUDA_VERSION=13.0.2

FROM rust:${RUST_VERSION}-slim-bookworm AS toolchain

FROM nvidia/cuda:${CUDA_VERSION}-devel-ubuntu24.04 AS build
# Both come with the image today; nvcc and one dependency need them.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates g++ \
    && rm -rf /var/lib/apt/lists/*
COPY --from=toolchain /usr/local/rustup /usr/local/rustup
COPY --from=toolchain /usr/local/cargo /usr/local/cargo
ENV RUSTUP_HOME=/usr/local/rustup CARGO_HOME=/usr/local/cargo PATH=/usr/local/cargo/bin:${PATH}
WORKDIR /src
COPY . .
# Cargo features, comma-separated.
ARG FEATURES=""
# An image without kernels would be built in silence otherwise.
ENV PLEACH_CUDA=require
RUN --mount=type=cache,target=/usr/local/cargo/registry,id=pleach-cargo,sharing=locked \
    --mount=type=cache,target=/src/target,id=pleach-target-cuda,sharing=locked \
    cargo build --release --locked --package pleach --features "${FEATURES}" \
    && install target/release/pleach /usr/local/bin/pleach

# Of CUDA only the driver is used, which the container runtime brings. This image asks for it, and refuses to start on a
# driver that is too old.
FROM nvidia/cuda:${CUDA_VERSION}-base-ubuntu24.04
# curl asks for the health; certificates are for object stores.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates curl \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 pleach \
    && useradd --uid 10001 --gid pleach --no-create-home --home-dir /var/lib/pleach --shell /usr/sbin/nologin pleach \
    && install --directory --owner=pleach --group=pleach --mode=0750 /var/lib/pleach
COPY LICENSE /usr/share/doc/pleach/LICENSE
COPY --from=build /usr/local/bin/pleach /usr/local/bin/pleach

# Models, database and blobs: what has to outlive the container.
ENV PLEACH_HOME=/var/lib/pleach
# Beyond the container's own loopback, so that the server refuses to start without a key.
ENV PLEACH_HOST=0.0.0.0
WORKDIR /var/lib/pleach
# By number, so that an orchestrator can tell that it is not root.
USER 10001:10001
EXPOSE 8000
# The first start fetches the model before it answers.
HEALTHCHECK --start-period=10m --interval=10s --timeout=5s --retries=3 \
    CMD ["sh", "-c", "exec curl --fail --silent --show-error --output /dev/null http://127.0.0.1:${PLEACH_PORT:-8000}/health"]
ENTRYPOINT ["pleach"]
CMD ["serve"]
