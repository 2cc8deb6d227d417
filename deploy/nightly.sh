#!/bin/sh
# Run a command every day at NIGHTLY_AT (UTC, HH:MM): nightly.sh COMMAND... A night that fails is logged, the next one is
# tried again. cron itself wants root and a writable file system; a container of ours has neither.
set -u
at=${NIGHTLY_AT:-02:30}
case $at in
    [01][0-9]:[0-5][0-9] | 2[0-3]:[0-5][0-9]) ;;
    *) echo "NIGHTLY_AT must be a time of day as 02:30, not '$at'." >&2; exit 2 ;;
esac

# In seconds of the day; %H may have a leading zero, which the shell would take for octal.
seconds() { echo "$1" | awk -F: '{ print $1 * 3600 + $2 * 60 + $3 }'; }

# A sleep that a signal cannot interrupt would hold up `docker stop`.
trap 'kill "$child" 2>/dev/null; exit 0' TERM INT
while :; do
    wait_s=$(( ($(seconds "$at") - $(seconds "$(date -u +%H:%M:%S)") + 86399) % 86400 + 1 ))
    echo "Next run in $wait_s s, at $at UTC."
    sleep "$wait_s" & child=$!
    wait "$child"
    "$@" & child=$!
    wait "$child" || echo "The run failed with $?; the store is as it was." >&2
done
