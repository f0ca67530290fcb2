#!/usr/bin/env bash
# Unpacks Debian 12's Slurm into a folder for the tests (docs/slurm.md); nothing is installed.
#   tests/slurm/unpack.sh FOLDER
set -euo pipefail
folder=$1
[ ! -e "$folder/complete" ] || exit 0
mkdir -p "$folder/debs"
cd "$folder/debs"
packages="slurmctld slurmd slurm-client slurm-wlm-basic-plugins munge libmunge2 libhwloc15 liblua5.1-0"
# shellcheck disable=SC2086  # a list
apt-get -qq download $packages 2>/dev/null || { apt-get -qq update && apt-get -qq download $packages; }
for package in *.deb; do dpkg -x "$package" ..; done
touch "$folder/complete"
