#!/bin/sh
# Check that the libraries Qt needs are here. On Debian or Ubuntu install what is missing
# as root; else print the command and stop. `with-xvfb` asks for a screen in memory too.
set -eu

[ "$(uname)" = Linux ] || exit 0

missing=
need() { # FILE PACKAGE
    ldconfig -p 2>/dev/null | grep -q "$1" || missing="$missing $2"
}
PATH="$PATH:/sbin:/usr/sbin"
need libEGL.so.1 libegl1
need libGL.so.1 libgl1
need libxkbcommon-x11.so.0 libxkbcommon-x11-0
need libxcb-cursor.so.0 libxcb-cursor0
need libxcb-icccm.so.4 libxcb-icccm4
need libxcb-image.so.0 libxcb-image0
need libxcb-keysyms.so.1 libxcb-keysyms1
need libxcb-randr.so.0 libxcb-randr0
need libxcb-render-util.so.0 libxcb-render-util0
need libxcb-shape.so.0 libxcb-shape0
need libxcb-xinerama.so.0 libxcb-xinerama0
need libdbus-1.so.3 libdbus-1-3
need libfontconfig.so.1 libfontconfig1
if [ "${1-}" = with-xvfb ]; then
    command -v Xvfb >/dev/null || missing="$missing xvfb"
    command -v xauth >/dev/null || missing="$missing xauth"
    [ -n "$(ls /usr/lib/*/dri/swrast_dri.so /usr/lib/dri/swrast_dri.so 2>/dev/null)" ] ||
        missing="$missing libgl1-mesa-dri"
fi
[ -n "$missing" ] || exit 0

if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
    echo "Installing what Qt needs:$missing"
    export DEBIAN_FRONTEND=noninteractive
    apt-get -qq update
    # shellcheck disable=SC2086  # several packages
    apt-get -qq install --yes --no-install-recommends $missing >/dev/null
elif command -v apt-get >/dev/null; then
    echo "Qt needs libraries that are not here. Install them and try again:"
    echo "  sudo apt-get update && sudo apt-get install$missing"
    exit 1
else
    echo "Qt needs libraries that are not here. By their Debian names:$missing"
    echo "Install your system's packages of them and try again."
    exit 1
fi
