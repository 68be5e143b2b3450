#!/bin/sh
# Writes the join key that the three nodes share, once; readable by the user of the image.
set -eu
cd "$(dirname "$0")"
[ -s join.key ] || { umask 022; od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >join.key; }
