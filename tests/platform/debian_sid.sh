# shellcheck shell=bash
# Packages of Debian's next release, downloaded and not installed. To be sourced.

# sid_download FOLDER PACKAGE... puts the packages' files into FOLDER.
sid_download() {
    local folder=$1 lists mirror
    shift
    command -v apt-get >/dev/null || { echo "this needs Debian's apt-get" >&2; return 4; }
    lists=$(mktemp -d)
    mirror=$(sed -n 's/^URIs: *//p' /etc/apt/sources.list.d/debian.sources 2>/dev/null | head -1)
    mkdir -p "$lists"/{lists/partial,archives/partial,parts}
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] ${mirror:-http://deb.debian.org/debian} sid main" \
        > "$lists/sources.list"
    cat > "$lists/apt.conf" <<-CONF
		Dir::Etc::sourcelist "$lists/sources.list";
		Dir::Etc::sourceparts "$lists/parts";
		Dir::Etc::preferencesparts "$lists/parts";
		Dir::State::lists "$lists/lists";
		Dir::Cache::archives "$lists/archives";
		Dir::Cache::pkgcache "";
		Dir::Cache::srcpkgcache "";
		APT::Sandbox::User "root";
	CONF
    APT_CONFIG=$lists/apt.conf apt-get update -qq
    (cd "$folder" && APT_CONFIG=$lists/apt.conf apt-get download -qq "$@")
    rm -rf "$lists"
}
