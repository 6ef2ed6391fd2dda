# shellcheck shell=bash disable=SC2034
# Shared by the scripts of this folder. Sourced, not run.
#
# Tests run as an ordinary user too, because most users are ordinary. As root, `identities` is "root user" and `run_as user`
# drops everything root has; as an ordinary user it is "self". What is run is built before, by whoever calls the script.
umask 022
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PATH=$PATH:${CARGO_HOME:-${HOME:-/root}/.cargo}/bin
TARGET=$(cd "$ROOT" && realpath -m "${CARGO_TARGET_DIR:-target}")
USER_ID=65534

say() { printf '\n== %s\n' "$*"; }
die() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }

if [ "$(id -u)" = 0 ]; then
    identities=(root user)
else
    identities=(self)
fi

# A folder that everybody can reach, for what the ordinary user needs; it goes when the script ends.
make_scratch() {
    scratch=$(mktemp -d /tmp/rmap-test.XXXXXX)
    trap 'rm -rf "$scratch"' EXIT
    chmod 755 "$scratch"
    mkdir "$scratch/home"
    if [ "$(id -u)" = 0 ]; then
        chown "$USER_ID:$USER_ID" "$scratch/home"
        drop=(setpriv --reuid "$USER_ID" --regid "$USER_ID" --clear-groups)
        # Where root may not even drop capabilities for good, leaving its user id drops the ones it has.
        if "${drop[@]}" --bounding-set=-all true 2>/dev/null; then
            drop+=(--bounding-set=-all)
        fi
    fi
}

# run_as IDENTITY COMMAND...: never longer than RMAP_TEST_TIMEOUT seconds.
run_as() {
    local identity=$1
    shift
    local limit=(timeout -k 10 "${RMAP_TEST_TIMEOUT:-300}")
    case $identity in
    user) "${limit[@]}" "${drop[@]}" env HOME="$scratch/home" TMPDIR="$scratch/home" "$@" ;;
    *) "${limit[@]}" "$@" ;;
    esac
}

# put_tests FOLDER NAME...: compiles test programs, and puts them, the actor and the library into a folder.
put_tests() {
    local folder=$1 library=${RMAP_TEST_LIB:-$TARGET/release/libxpmem.so} name program
    shift
    [ -e "$library" ] || make -s all
    say "compiling the tests"
    cargo test -p rmap-tests -p rmap-core "${@/#/--test=}" --no-run --message-format=json-render-diagnostics >"$folder/messages"
    for name in "$@"; do
        program=$(sed -n '/"profile":{[^}]*"test":true/ s|.*"executable":"\([^"]*/'"$name"'-[^"]*\)".*|\1|p' "$folder/messages")
        [ -n "$program" ] || die "no test program $name found"
        cp "$program" "$folder/$name"
    done
    cp "${program%/deps/*}/rmap-test-actor" "$folder"
    cp "$library" "$folder/libxpmem.so"
    rm "$folder/messages"
}

# Can the ordinary user get at this file?
user_can_read() { "${drop[@]}" test -r "$1"; }
