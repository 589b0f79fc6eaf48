# pleach on the CPU. One image for every processor: kernels are chosen when the server starts.
#
#   docker build -f deploy/container/cpu.Dockerfile -t pleach:cpu .
#   docker run -p 127.0.0.1:8000:8000 -e PLEACH_API_KEY=... -v pleach:/var/lib/pleach pleach:cpu

# As in rust-toolchain.toml.
ARG RUST_VERSION=1.95.0

FROM rust:${RUST_VERSION}-slim-trixie AS build
WORKDIR /src
COPY . .
# Cargo features, comma-separated.
ARG FEATURES=""
ENV PLEACH_CUDA=off
RUN --mount=type=cache,target=/usr/local/cargo/registry,id=pleach-cargo,sharing=locked \
    --mount=type=cache,target=/src/target,id=pleach-target-cpu,sharing=locked \
    cargo build --release --locked --package pleach --features "${FEATURES}" \
    && install target/release/pleach /usr/local/bin/pleach

# The Debian of the build stage, for its glibc.
FROM debian:trixie-slim
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
