# syntax=docker/dockerfile:1

FROM rust:1.95-slim-bookworm AS build
WORKDIR /app

# The dependencies in a layer of their own: it is built again only when they change. Cargo wants to
# see targets, so it gets empty ones.
COPY Cargo.toml Cargo.lock ./
# Members of the workspace, so Cargo reads them; they are not built.
COPY bench/Cargo.toml bench/
COPY bench/hot-path/Cargo.toml bench/hot-path/
RUN mkdir src static \
 && echo 'fn main() {}' | tee src/main.rs build.rs \
 && touch src/lib.rs \
 && cargo build --release --locked

COPY build.rs ./
COPY static static
COPY src src
# Cargo goes by modification times, and a copied file keeps the one of the checkout.
RUN find build.rs static src -type f -exec touch {} + \
 && cargo build --release --locked

# glibc, libgcc, CA certificates and a user without rights; no shell.
FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /app/target/release/alien-alert /alien-alert
# Who goes without a key needs root: Fly's socket is for root alone (docs/deploy.md).
ARG RUN_AS=nonroot
USER ${RUN_AS}
EXPOSE 8080
ENTRYPOINT ["/alien-alert"]
