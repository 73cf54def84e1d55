# shellcheck shell=bash
# Sources of the runtimes: fetched by Debian's own client, named by digest, kept in the cache. To be sourced.

AF_CACHE_DIR=${AF_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/agentfactory}
export ZIG_GLOBAL_CACHE_DIR=${ZIG_GLOBAL_CACHE_DIR:-$AF_CACHE_DIR/zig}
# What a compiler writes into its output must not depend on the day.
export SOURCE_DATE_EPOCH=1749600000 TZ=UTC LC_ALL=C
SUITE=trixie

# source_of PACKAGE FILE SHA256 prints the path of the package's original source.
source_of() {
    local package=$1 file=$2 digest=$3 kept=$AF_CACHE_DIR/sources/$3
    if ! [ -s "$kept/$file" ]; then
        mkdir -p "$AF_CACHE_DIR/sources"
        local lists mirror
        lists=$(mktemp -d "$AF_CACHE_DIR/sources/.fetch-XXXXXX")
        mirror=$(sed -n 's/^URIs: *//p' /etc/apt/sources.list.d/debian.sources 2>/dev/null | head -1)
        mkdir -p "$lists"/{lists/partial,archives/partial,parts,files}
        echo "deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] ${mirror:-http://deb.debian.org/debian} $SUITE main" \
            > "$lists/sources.list"
        printf 'Dir::Etc::sourcelist "%s";\nDir::Etc::sourceparts "%s";\nDir::Etc::preferencesparts "%s";\nDir::State::lists "%s";\nDir::Cache::archives "%s";\nDir::Cache::pkgcache "";\nDir::Cache::srcpkgcache "";\nAPT::Sandbox::User "root";\n' \
            "$lists/sources.list" "$lists/parts" "$lists/parts" "$lists/lists" "$lists/archives" > "$lists/apt.conf"
        APT_CONFIG=$lists/apt.conf apt-get update -qq >&2
        (cd "$lists/files" && APT_CONFIG=$lists/apt.conf apt-get source -qq --download-only --only-source "$package/$SUITE" >&2) || true
        [ -s "$lists/files/$file" ] || { echo "$file is not served by $SUITE any more; put it into $kept/ by hand" >&2; return 4; }
        mkdir -p "$kept" && mv "$lists/files/$file" "$kept/$file"
        rm -rf "$lists"
    fi
    echo "$digest  $kept/$file" | sha256sum --check --quiet >&2 || { echo "$kept/$file is not what was pinned; remove it" >&2; return 3; }
    echo "$kept/$file"
}
