# syntax=docker/dockerfile:1

# The compiler of rust-toolchain.toml, on the Debian whose libraries the image gets.
FROM rust:1.95.0-slim-bookworm AS build
WORKDIR /app
# --build-arg FEATURES=otlp makes one that can tell traces.
ARG FEATURES=

# What lists the packages in the program, in a layer of its own: it changes least.
COPY scripts/sbom scripts/
RUN scripts/sbom install

# The dependencies in a layer of their own: it is built again only when they change. Cargo wants to
# see targets, so it gets empty ones.
COPY Cargo.toml Cargo.lock ./
# Members of the workspace, so Cargo reads them; they are not built.
COPY bench/Cargo.toml bench/
COPY bench/hot-path/Cargo.toml bench/hot-path/
COPY scripts/build scripts/
COPY bench/scale/Cargo.toml bench/scale/
RUN mkdir src static \
 && echo 'fn main() {}' | tee src/main.rs build.rs \
 && touch src/lib.rs \
 && scripts/build

COPY build.rs ./
COPY static static
COPY src src
# Cargo goes by modification times, and a copied file keeps the one of the checkout.
RUN find build.rs static src -type f -exec touch {} + \
 && scripts/build

COPY scripts/image-root scripts/
RUN scripts/sbom sbom.cdx.json \
 && scripts/image-root target/release/alien-alert sbom.cdx.json /image

# The program, its three libraries, certificates and one user without rights: nothing else is there to
# be run, read or kept up to date. Nothing is written, so the file system may be read-only.
FROM scratch AS root
COPY --from=build /image /
EXPOSE 8080
ENTRYPOINT ["/alien-alert"]

# For Fly (fly.toml's build-target): root for as long as it takes to raise the limit on open files, which
# is half of what the sockets want there; then the same user.
FROM root AS fly
USER 0:0
ENV RUN_AS=65532

# For everyone else.
FROM root AS image
USER 65532:65532
