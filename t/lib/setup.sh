# Sourced by ./demo and ./test from the top of the tree: what they need from Debian, and who runs what.
# shellcheck shell=sh disable=SC2034

PATH=/usr/local/sbin:/usr/sbin:/sbin:$PATH
export PATH

say() {
    printf '%s\n' "$*"
}

die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

# Packages by name; "a|b" means the first of them that this Debian has.
build_packages='gcc libc6-dev make pkg-config nginx nginx-dev libhiredis-dev libjansson-dev libssl-dev libpq-dev
    libcurl4-openssl-dev'
run_packages='postgresql-17|postgresql-15 postgresql-client redis-server|valkey-server redis-tools|valkey-tools
    curl perl procps util-linux openssl ca-certificates'
test_packages='postgresql-17-pgtap|postgresql-15-pgtap libcmocka-dev libnginx-mod-nchan chromium prometheus
    php-cli python3 python3-yaml python3-jsonschema nodejs systemd libio-socket-ssl-perl'

package_installed() {
    dpkg-query -W -f '${Status}' "$1" 2>/dev/null | grep -q '^install ok installed$'
}

package_known() {
    apt-cache show --no-all-versions "$1" >/dev/null 2>&1
}

# Prints which of the packages are not there.
packages_missing() {
    for choice in "$@"; do
        found=
        for name in $(printf '%s' "$choice" | tr '|' ' '); do
            if package_installed "$name"; then
                found=1
                break
            fi
        done
        [ -n "$found" ] || printf '%s\n' "$choice"
    done
}

packages_choose() {
    for choice in "$@"; do
        for name in $(printf '%s' "$choice" | tr '|' ' '); do
            if package_known "$name"; then
                printf '%s ' "$name"
                continue 2
            fi
        done
        # Without package lists there is no telling; the last is the oldest Debian's.
        printf '%s ' "${choice##*|}"
    done
}

# What gets installed must neither start nor be enabled, and no cluster is made: what runs here is private. Debian asks
# policy-rc.d before it starts a service, and createcluster.d before it makes a cluster.
# shellcheck disable=SC2016
apt_install='
    set -e
    policy=/usr/sbin/policy-rc.d
    cluster=/etc/postgresql-common/createcluster.d
    units=
    for unit in nginx redis-server valkey-server postgresql; do
        [ -e "/lib/systemd/system/$unit.service" ] || units="$units $unit"
    done
    if [ ! -e "$policy" ]; then
        printf "#!/bin/sh\nexit 101\n" > "$policy"
        chmod 755 "$policy"
    else
        policy=
    fi
    mkdir -p "$cluster"
    printf "create_main_cluster = false\n" > "$cluster/affiliated-setup.conf"
    trap "rm -f $policy $cluster/affiliated-setup.conf" EXIT
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@"
    for unit in $units; do
        if [ -e "/lib/systemd/system/$unit.service" ] && command -v systemctl; then
            systemctl disable "$unit" || :
        fi
    done
'

# Installs what is missing of the given packages, or says how.
need_packages() {
    missing=$(packages_missing "$@")
    [ -n "$missing" ] || return 0

    if [ "$(id -u)" = 0 ]; then
        as_root=
    elif sudo -n true 2>/dev/null; then
        as_root='sudo -n'
    else
        say 'These Debian packages are missing; as root, run:'
        # shellcheck disable=SC2086
        say "  apt-get install --no-install-recommends $(packages_choose $missing)"
        exit 1
    fi

    log=$(mktemp)
    $as_root apt-get update -q >"$log" 2>&1 || say "apt-get update failed; going on with the lists that are there"
    # shellcheck disable=SC2086
    names=$(packages_choose $missing) || exit 1
    say "Installing: $names"
    # shellcheck disable=SC2086
    $as_root sh -c "$apt_install" sh $names >>"$log" 2>&1 || {
        tail -20 "$log" >&2
        die "apt-get install failed; the whole of it is in $log"
    }
    rm -f "$log"
}
