#!/bin/sh
# Finds a PostgreSQL server for the tests of the label store, or installs Debian's, or says in one line how.
for folder in /usr/lib/postgresql/*/bin /usr/local/pgsql/bin; do
    [ -x "$folder/initdb" ] && exit 0
done
command -v initdb >/dev/null 2>&1 && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "Installing Debian's postgresql for the tests of the label store ..."
    (apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq postgresql) >/dev/null 2>&1 && exit 0
fi
echo "No PostgreSQL: its tests will be skipped. Install it with 'sudo apt-get install postgresql'."
