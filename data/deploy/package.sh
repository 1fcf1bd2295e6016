#!/usr/bin/env bash
# Builds the packages of tallyline into target/dist/, with their checksums in SHA256SUMS. Nothing is
# published. Run `bash data/deploy/package.sh [PACKAGE...]` in a clone; PACKAGE is tar, deb, wheel, npm
# or image, and without one all are built. They contain the same static binary, which is built once.
#
# `bash data/deploy/package.sh binary` only builds that binary,
# target/ARCH-unknown-linux-gnu/stripped/tallyline, and needs nothing but a Rust toolchain and a C compiler.
#
# The packages need jq, too; for `npm` npm, for `image` buildah. cargo-deb, for `deb`,
# and maturin, for `wheel`, are installed into target/tools/ if they are missing, or before, by
# `bash data/deploy/package.sh tools`.
set -euo pipefail
cd "$(dirname "$0")/../.."

cargo_deb_version=3.8.0 maturin_version=1.16.0

arch=$(uname -m)
target=$arch-unknown-linux-gnu
deploy=$PWD/data/deploy staging=$PWD/target/staging tools=$PWD/target/tools dist=$PWD/target/dist
field() { cargo metadata --locked --no-deps --format-version 1 | jq -c ".packages[0] | $1"; }
# The time in the packages. SOURCE_DATE_EPOCH is not set where cargo may build: its value is part of
# SQLite's build, which would be repeated after each commit.
commit_time=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}
export CARGO_TARGET_DIR=$PWD/target
# The explicit target keeps the flags from applying to build scripts. With the second one, random numbers
# come from the system call; a static program would look for /dev/urandom, which a root directory without
# devices does not have.
export RUSTFLAGS='-C target-feature=+crt-static --cfg getrandom_backend="linux_getrandom"'
bin=$CARGO_TARGET_DIR/$target/stripped/tallyline

need_cargo_deb() {
    [[ -x $tools/bin/cargo-deb ]] ||
        RUSTFLAGS='' cargo install --quiet --locked --root "$tools" --target-dir "$tools/build" --debug \
            --no-default-features "cargo-deb@$cargo_deb_version"
}

need_maturin() {
    [[ -x $tools/venv/bin/maturin ]] || {
        python3 -m venv "$tools/venv"
        "$tools/venv/bin/pip" install --quiet --disable-pip-version-check "maturin==$maturin_version"
    }
}

build_binary() { cargo build --locked --profile stripped --target "$target"; }

# Prepares the files that the binary prints.
stage() {
    rm -rf "$staging" "$dist"
    mkdir -p "$staging" "$dist"
    # Packages keep these modes.
    umask 022
    "$bin" man >"$staging/tallyline.1"
    "$bin" completions bash >"$staging/tallyline.bash"
    "$bin" completions zsh >"$staging/_tallyline"
    "$bin" completions fish >"$staging/tallyline.fish"
}

build_tar() {
    local name=tallyline-$version-$arch-linux
    mkdir -p "$staging/$name/completions"
    cp "$bin" LICENSE "$staging/tallyline.1" "$deploy/tallyline.service" "$staging/$name/"
    cp "$staging"/{tallyline.bash,_tallyline,tallyline.fish} "$staging/$name/completions/"
    tar -C "$staging" --sort=name --owner=0 --group=0 --numeric-owner --mode=go-w \
        --mtime="@$commit_time" -cf - "$name" | gzip -9n >"$dist/$name.tar.gz"
}

# The unit of the package has the user that the package creates, and the path of packaged programs.
build_deb() {
    need_cargo_deb
    sed -e '/^#/d' -e 's#/usr/local/bin/#/usr/bin/#' \
        -e 's/^DynamicUser=yes$/User=tallyline\nGroup=tallyline\nRemoveIPC=yes/' \
        "$deploy/tallyline.service" >"$staging/tallyline.service"
    ! grep -qE 'DynamicUser|/usr/local' "$staging/tallyline.service"
    cat >"$staging/changelog" <<END
tallyline ($version-1) unstable; urgency=medium

  * Release $version.

 -- $(field .metadata.deb.maintainer | jq -r .)  $(date -uRd "@$commit_time")
END
    SOURCE_DATE_EPOCH=$commit_time "$tools/bin/cargo-deb" deb --locked --no-build --no-strip --profile stripped --target "$target" --output "$dist/"
}

# Cargo finds the binary built. A wheel takes its licence only from the directory of pyproject.toml, so the
# package is built in a copy that has it, as far below Cargo.toml as the original.
build_wheel() {
    need_maturin
    cp -r "$deploy/python" "$staging/"
    cp LICENSE "$staging/python/"
    (cd "$staging/python" && "$tools/venv/bin/maturin" build --locked --profile stripped --target "$target" --out "$dist")
}

# The rest of package.json comes from Cargo.toml.
build_npm() {
    local at=$staging/npm cpu=$arch
    case $arch in x86_64) cpu=x64 ;; aarch64) cpu=arm64 ;; esac
    mkdir -p "$at/bin"
    cp "$bin" "$at/bin/"
    cp LICENSE "$deploy/npm/README.md" "$at/"
    jq --argjson crate "$(field '{version, description, license, keywords}')" --arg cpu "$cpu" \
        '. + $crate + {cpu: [$cpu]}' "$deploy/npm/package.json" >"$at/package.json"
    (cd "$at" && npm pack --silent --pack-destination "$dist")
}

# The last stage of the Dockerfile, with the files of its first one. Images have Docker's format, because
# that of OCI cannot hold a health check; Docker, Podman and containerd load them.
build_image() {
    local at=$staging/image name=tallyline-$version-$arch-image.tar
    mkdir -p "$at/out/volume"
    mkdir -m 700 "$at/out/volume/data"
    cp "$bin" "$at/out/"
    sed -n '/^FROM scratch/,$ { s/--from=build //; p }' \
        "$deploy/Dockerfile" >"$at/Dockerfile"
    echo '{"default": [{"type": "insecureAcceptAnything"}]}' >"$at/policy.json"
    image() {
        local command=$1
        shift
        buildah --root "$at/store" --runroot "$at/run" --storage-driver vfs "$command" \
            --signature-policy "$at/policy.json" "$@"
    }
    image build --isolation chroot --format docker --timestamp "$commit_time" \
        --label "org.opencontainers.image.version=$version" \
        --label "org.opencontainers.image.licenses=$(field .license | jq -r .)" \
        --file "$at/Dockerfile" --tag "tallyline:$version" "$at"
    image push "tallyline:$version" "docker-archive:$dist/$name:tallyline:$version"
    rm -rf "$at"
}

case $* in
tools)
    need_cargo_deb
    need_maturin
    exit
    ;;
binary)
    build_binary
    exit
    ;;
esac
(($# > 0)) || set -- tar deb wheel npm image
for package in "$@"; do
    declare -F "build_$package" >/dev/null || {
        echo "there is no package $package; the packages are tar, deb, wheel, npm, image" >&2
        exit 2
    }
done
build_binary
version=$(field .version | jq -r .)
stage
for package in "$@"; do "build_$package"; done
(cd "$dist" && sha256sum -- * >"$staging/SHA256SUMS" && mv "$staging/SHA256SUMS" .)
cat "$dist/SHA256SUMS"
