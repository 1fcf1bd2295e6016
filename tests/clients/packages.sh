#!/usr/bin/env bash
# Installs each package of target/dist, as built by data/deploy/package.sh, and runs the program from it.
# The Debian package is installed, upgraded, removed and purged in a copy-on-write view of this system.
# Must run as root. Needs lintian, buildah, systemd-analyze, mandoc, npm, python3, jq, curl.
. "$(dirname "$0")/lib.sh"
dist=$repo/target/dist
((EUID == 0)) || fail "this script must run as root: it uses chroot and mounts"

# one PATTERN: the only file in target/dist with such a name.
one() {
    local found=("$dist"/$1)
    ((${#found[@]} == 1)) && [[ -f ${found[0]} ]] || fail "not one file $1 in $dist"
    echo "${found[0]}"
}
tarball=$(one 'tallyline-*-linux.tar.gz')
deb=$(one '*.deb') wheel=$(one '*.whl') npm=$(one 'tallyline-*.tgz') image=$(one '*-image.tar')
version=$("$bin" --version)
version=${version#tallyline }

totals=$(printf '%s\n' 'acme/eu 1000' 'café 7.75' 'metered 1000.000003' 'refunds@example.com -12.000001' \
    'user1 50' 'user2 200')

# demo WHAT COMMAND...: `demo --exit` of this command counts the sample.
demo() {
    local what=$1 output
    shift
    output=$("$@" demo --exit --listen 127.0.0.1:0 2>"$tmp/demo.log") || fail "$what: $(cat "$tmp/demo.log")"
    [[ $(sed -E '/^(Sent|Counted|Next:) /d' <<<"$output" | awk '{ $1 = $1; print }') == "$totals" ]] || fail "$what: the demo shows: $output"
    ok "$what: the demo counts the sample"
}

# pages DIR MANUAL BASH: the manual page and the completions of a package are valid.
check_pages() {
    mandoc -Tlint -Werror "$1" || fail "the manual page has errors"
    grep -q "tallyline $version" <(mandoc -Tutf8 "$1") || fail "the manual page is not of version $version"
    bash -c "source '$2' && complete -p tallyline" >/dev/null || fail "the completions for bash have errors"
}

check_sums() {
    (cd "$dist" && sha256sum --quiet --check SHA256SUMS)
    same "packages with a checksum" "$(wc -l <"$dist/SHA256SUMS")" "$(($(find "$dist" -type f | wc -l) - 1))"
    local name
    for name in "$tarball" "$deb" "$wheel" "$npm" "$image"; do
        [[ $name == *[-_]"$version"[-_.]* ]] || fail "$name is not of version $version"
    done
}

check_tar() {
    local at root=$tmp/root
    tar -C "$tmp" -xzf "$tarball"
    at=$tmp/$(basename "$tarball" .tar.gz)
    same "files of the archive" "$(cd "$at" && find . -type f | sort | tr '\n' ' ')" \
        "./LICENSE ./completions/_tallyline ./completions/tallyline.bash ./completions/tallyline.fish ./tallyline ./tallyline.1 ./tallyline.service "
    ldd "$at/tallyline" 2>&1 | grep 'statically linked' >/dev/null || fail "the binary is not static"
    ! readelf --section-headers --wide "$at/tallyline" | grep -E '\.(symtab|debug_)' >/dev/null || fail "the binary is not stripped"
    check_pages "$at/tallyline.1" "$at/completions/tallyline.bash"
    cmp "$at/tallyline.service" "$repo/data/deploy/tallyline.service"
    install -d -o 65534 -g 65534 "$root"
    cp "$at/tallyline" "$root/"
    demo "static binary in an empty root directory" chroot --userspec=65534:65534 "$root" /tallyline
}

# Runs in the view, where it may change the system. `$1` and `$2` are two versions of the package.
installed() {
    cd /
    unset "${!TALLYLINE_@}"
    export DEBIAN_FRONTEND=noninteractive
    local at=/var/lib/tallyline unit=/usr/lib/systemd/system/tallyline.service port server
    ! command -v tallyline || fail "tallyline is installed on this machine already"
    dpkg -i "$1" >/dev/null
    dpkg --verify tallyline
    [[ $(id -gn tallyline) == tallyline && $(id -u tallyline) -lt 1000 ]] || fail "no system user"
    same "the data directory" "$(stat -c '%U:%G %a' $at)" "tallyline:tallyline 700"
    same "the service is enabled" "$(readlink /etc/systemd/system/multi-user.target.wants/tallyline.service | sed 's#^/usr##')" \
        /lib/systemd/system/tallyline.service
    [[ -f $unit ]] || unit=/lib/systemd/system/tallyline.service
    systemd-analyze verify $unit 2>/tmp/unit.log || fail "$(cat /tmp/unit.log)"
    ! grep tallyline.service /tmp/unit.log || fail "the unit has warnings"
    systemd-analyze security --offline=true --threshold=20 $unit >/dev/null
    gunzip -k /usr/share/man/man1/tallyline.1.gz
    check_pages /usr/share/man/man1/tallyline.1 /usr/share/bash-completion/completions/tallyline
    [[ -s /usr/share/zsh/vendor-completions/_tallyline && -s /usr/share/fish/vendor_completions.d/tallyline.fish ]]
    grep -q 'MIT License\|Permission is hereby granted' /usr/share/doc/tallyline/copyright

    # An administrator's settings.
    printf '%s\n' TALLYLINE_LISTEN=127.0.0.1:0 TALLYLINE_PORT_FILE=$at/port >>/etc/tallyline/env
    start
    post "http://127.0.0.1:$port/liveEvent" '{"userId":"user1","name":"add_revenue","value":100}' >/dev/null
    tallyline ready --quiet --to "http://127.0.0.1:$port"
    [[ -z $(find $at \( ! -user tallyline -o -perm /077 \)) ]] || fail "others can read $at"
    kill "$server" && wait "$server" || fail "the server exited with $?"
    same "the total, read by root" "$(tallyline query user1 --json --data-dir $at | jq -c .[0].revenue)" 100
    [[ -z $(find $at ! -user tallyline) ]] || fail "root's query created files in $at"

    dpkg -i "$2" >/dev/null
    same "the version after the upgrade" "$(dpkg-query -Wf '${Version}' tallyline)" "$(dpkg-deb -f "$2" Version)"
    grep -q "PORT_FILE=$at/port" /etc/tallyline/env || fail "the upgrade replaced the settings"
    start
    post "http://127.0.0.1:$port/liveEvent?ack=applied" '{"userId":"user1","name":"add_revenue","value":1}' >/dev/null
    same "the total after the upgrade" "$(curl -fsS "http://127.0.0.1:$port/userEvents/user1" | jq .revenue)" 101
    kill "$server" && wait "$server" || fail "the server exited with $?"

    dpkg -r tallyline >/dev/null
    [[ ! -e /usr/bin/tallyline && -e $at/revenue.db && -e /etc/tallyline/env ]] || fail "after remove"
    dpkg -i "$1" >/dev/null 2>&1
    tallyline verify --data-dir $at --quiet || fail "after remove and install"
    dpkg -P tallyline >/dev/null
    local left
    left=$(find /etc /usr /lib /var -xdev -name '*tallyline*' ! -path '/var/log/*' ! -path '/usr/share/man/man1/tallyline.1')
    [[ -z $left ]] || fail "after purge there is $left"
    dpkg -i "$1" >/dev/null
    dpkg -P tallyline >/dev/null
    ok "upgrade keeps data and settings; remove keeps them, too; purge deletes them"
}

# Starts the server as its unit does: the command, user, umask and environment are those of the unit.
start() {
    local command user mask
    value() { sed -n "s/^$1=//p" "$unit"; }
    command=$(value ExecStart) user=$(value User) mask=$(value UMask)
    same "the environment file" "$(value EnvironmentFile)" -/etc/tallyline/env
    rm -f $at/port
    (
        umask "$mask"
        set -a
        # shellcheck disable=SC1091
        source /etc/tallyline/env
        exec setpriv --reuid "$user" --regid "$(value Group)" --clear-groups --no-new-privs --bounding-set=-all \
            --inh-caps=-all $command 2>>/tmp/service.log
    ) &
    server=$!
    pids+=("$server")
    until_true "the port file of the service" test -s $at/port
    port=$(cat $at/port)
}

check_deb() {
    lintian --allow-root --fail-on error,warning "$deb" || fail "lintian"
    ok "lintian reports nothing"
    local view=$tmp/view newer=$tmp/newer
    dpkg-deb -R "$deb" "$newer"
    sed -i 's/^Version: .*/&+newer/' "$newer/DEBIAN/control"
    dpkg-deb -Zgzip --root-owner-group -b "$newer" "$tmp/newer.deb" >/dev/null
    mkdir "$view" "$tmp/packages"
    cp "$deb" "$tmp/newer.deb" "$bin" "$clients/lib.sh" "$tmp/packages/"
    {
        echo 'cd /tmp/packages && . ./lib.sh tallyline'
        declare -p version
        declare -f installed start check_pages
        echo "installed '/tmp/packages/${deb##*/}' /tmp/packages/newer.deb"
    } >"$tmp/packages/script"
    # shellcheck disable=SC2016
    unshare --mount --propagation private bash -euc '
        mount -t tmpfs tallyline "$1"
        mkdir "$1"/{changes,work,root}
        mount -t overlay -o "lowerdir=/,upperdir=$1/changes,workdir=$1/work" overlay "$1/root"
        mount --bind /dev "$1/root/dev"
        mount -t proc proc "$1/root/proc"
        rm -rf "$1/root/tmp/packages"
        cp -r "$2" "$1/root/tmp/"
        exec chroot "$1/root" bash /tmp/packages/script
    ' view "$view" "$tmp/packages"
}

check_wheel() {
    python3 -m zipfile -l "$wheel" | grep 'licenses/LICENSE ' >/dev/null || fail "no licence in the wheel"
    python3 -m venv "$tmp/venv"
    "$tmp/venv/bin/pip" install --quiet --disable-pip-version-check --no-index "$wheel"
    (cd "$tmp" && demo "wheel" "$tmp/venv/bin/tallyline")
    "$tmp/venv/bin/pip" install --quiet --disable-pip-version-check pytest==9.2.0
    cp -r "$repo/data/deploy/python/tests" "$tmp/tests"
    (cd "$tmp/tests" && "$tmp/venv/bin/python" -m pytest -q -p no:cacheprovider) || fail "the pytest fixture"
    ok "the pytest fixture starts a server per test"

    python_with uv uv==0.13.9
    mkdir "$tmp/uvx"
    (cd "$tmp/uvx" && UV_CACHE_DIR=$tmp/uv demo "uvx" "$tools/venv-uv/bin/uvx" --offline --no-config --from "$wheel" tallyline)
}

check_npm() {
    mkdir "$tmp/npm" "$tmp/npx"
    cd "$tmp/npm"
    export npm_config_cache=$tmp/npm-cache npm_config_update_notifier=false npm_config_offline=true
    npm install --silent --no-audit --no-fund "$npm"
    demo "npm, installed in an empty directory" npx --no-install tallyline
    same "version of the npm package" "$(node -p 'require("tallyline/package.json").version')" "$version"
    cd "$tmp/npx"
    demo "npx without an installation" npx --yes --package "$npm" -- tallyline
}

check_image() {
    local at=$tmp/image config root user entry url health
    mkdir "$at"
    echo '{"default": [{"type": "insecureAcceptAnything"}]}' >"$at/policy.json"
    image() { buildah --root "$at/store" --runroot "$at/run" --storage-driver vfs "$@"; }
    local container
    container=$(image from --pull-never --signature-policy "$at/policy.json" "docker-archive:$image")
    config=$(image inspect "$container" | jq .Docker.config)
    is() { same "the image's $1" "$(jq -c "$1" <<<"$config")" "$2"; }
    is .User '"65534:65534"'
    is .Volumes '{"/data":{}}'
    is .ExposedPorts '{"8000/tcp":{}}'
    is .Entrypoint '["/tallyline"]'
    is .Healthcheck.Test '["CMD","/tallyline","ready","--quiet"]'
    is '.Labels["org.opencontainers.image.version"]' "\"$version\""
    root=$(image mount "$container")
    same "files of the image" "$(cd "$root" && find . -mindepth 1 -maxdepth 1 | sort | tr '\n' ' ')" "./data ./tallyline "
    same "its data directory" "$(stat -c '%u:%g %a' "$root/data")" "65534:65534 700"
    cmp "$root/tallyline" "$bin"

    # Its command in its root file system, as its user; only the port differs.
    echo image-test-token >"$root/tokens"
    mapfile -t entry < <(jq -r '.Entrypoint[], .Cmd[]' <<<"$config" | sed 's/^0\.0\.0\.0:8000$/0.0.0.0:0/')
    user=$(jq -r .User <<<"$config")
    in_image() { chroot --userspec="$user" "$root" "$@"; }
    # Not through the function, so that `$!` is the server and not a shell around it.
    chroot --userspec="$user" "$root" "${entry[@]}" --port-file /data/port 2>"$tmp/image.log" &
    server=$!
    pids+=("$server")
    until_true "the port file of the image's server" test -s "$root/data/port"
    url=http://127.0.0.1:$(cat "$root/data/port")
    same "an event without the token" "$(curl -s -o /dev/null -w '%{http_code}' -d '{}' "$url/liveEvent")" 401
    post "$url/liveEvent?ack=applied" '{"userId":"user1","name":"add_revenue","value":100}' \
        -H 'Authorization: Bearer image-test-token' >/dev/null
    mapfile -t health < <(jq -r '.Healthcheck.Test[1:][]' <<<"$config")
    in_image "${health[@]}" --to "$url" || fail "the health check of a running server"
    kill "$server"
    wait "$server" || fail "the image's server exited with $?"
    ! in_image "${health[@]}" --to "$url" 2>/dev/null || fail "the health check of a stopped server"
    ok "the image serves, and its health check tells a running server from a stopped one"
    image umount "$container" >/dev/null
}

# `cargo install` builds the same program, also from a repository: nothing comes from the environment.
check_cargo() {
    local target flags
    target=$(uname -m)-unknown-linux-gnu
    flags=$(sed -n "s/^export RUSTFLAGS='\(.*\)'$/\1/p" data/deploy/package.sh)
    [[ -n $flags ]] || fail "no RUSTFLAGS in package.sh"
    RUSTFLAGS=$flags cargo install --quiet --locked --offline --path . \
        --profile stripped --target "$target" --target-dir target --root "$tmp/path"
    cmp "$tmp/path/bin/tallyline" "$bin" || fail "cargo install --path gives another program"
    ok "cargo install --path gives the same program"
    cargo install --quiet --locked --debug --git "file://$repo" tallyline --target-dir target --root "$tmp/git"
    cd "$tmp"
    demo "cargo install --git" "$tmp/git/bin/tallyline"
}

# All parts, or those named after the binary.
shift
(($# > 0)) || set -- sums tar deb wheel npm image cargo
for part in "$@"; do
    from=$SECONDS
    cd "$repo"
    "check_$part"
    echo "$part: $((SECONDS - from)) s"
done
