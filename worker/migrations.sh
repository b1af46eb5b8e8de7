#!/bin/sh
# Writes a C source that holds the migrations: worker/migrations.sh sql/*.sql > build/migrations.c
#
# Each file is an array of bytes and not a string literal: a C compiler need only take literals of 4095 characters.

set -eu
export LC_ALL=C

echo '/* Made by worker/migrations.sh from sql/. */'
echo
echo '#include "worker/migrate.h"'

last=0
for file in "$@"; do
    name=$(basename "$file" .sql)
    number=${name%%_*}
    case $number in
        '' | *[!0-9]*)
            echo "$file: a migration is named NNN_name.sql" >&2
            exit 1
            ;;
    esac
    version=$(printf '%s\n' "$number" | sed 's/^0*//')
    if [ "${version:-0}" -ne $((last + 1)) ]; then
        echo "$file: migration $((last + 1)) is expected" >&2
        exit 1
    fi
    last=$version

    echo
    echo "static const char migration_${version}[] = {"
    od -An -v -tu1 "$file" | awk '{ gsub(/[ \t]+/, " "); sub(/^ /, ""); sub(/ $/, ""); gsub(/ /, ","); print "    (char)" $0 "," }' |
        sed 's/,\([0-9]\)/,(char)\1/g'
    echo '    0,'
    echo '};'
done

echo
echo 'const struct migration migrations[] = {'
for file in "$@"; do
    name=$(basename "$file" .sql)
    version=$(printf '%s\n' "${name%%_*}" | sed 's/^0*//')
    echo "    {$version, \"$name\", migration_$version},"
done
echo '    {0, 0, 0},'
echo '};'
