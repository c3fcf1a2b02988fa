# Uninstalling, for scripts/install-cni, which has the options, the functions that say what is there, and the lists.
# shellcheck shell=bash disable=SC2154

# Prints the attachments of this boot, one a line: those of our plugins have records; those of another plugin that uses
# static-ip have a holder in leases.db.
attachments() {
    "$python" -I - "$rundir" "$statedir" "${elsewhere[@]}" <<'PYTHON'
import contextlib, json, os, pathlib, sqlite3, sys

boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
recorded = set()
for path in sorted(pathlib.Path(sys.argv[1], "attachments").glob("*.json")):
    if not path.is_file() or not (text := path.read_text(errors="replace")):
        continue
    try:
        record = json.loads(text)
        pod = record.get("pod") or {}
        who = f"{pod['namespace']}/{pod['name']}" if pod.get("name") else record.get("vm") or record["containerid"]
        line = f"{record['network']}: {who} {record['ifname']} ({record['plugin']})"
        here = record["boot_id"] == boot
        recorded.add((record["network"], record["containerid"], record["ifname"]))
    except (ValueError, KeyError, TypeError, AttributeError):
        line, here = f"{path} cannot be read", True
    if here:
        print(line)


def is_there(holder):
    with contextlib.suppress(OSError, ValueError):
        return holder["boot_id"] == boot and os.stat(holder["netns"]).st_ino == holder["inode"]
    return False


def holders(leases):
    # Opening a FIFO would wait for a writer.
    if not leases.is_file():
        return []
    # immutable=1: without it SQLite would create a log beside a database that has none.
    how = "mode=ro" if os.path.exists(f"{leases}-wal") else "mode=ro&immutable=1"
    with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(f"{leases.as_uri()}?{how}", uri=True)) as base:
        base.row_factory = sqlite3.Row
        return base.execute("SELECT * FROM holders ORDER BY network, container_id, ifname").fetchall()
    return []


for folder in dict.fromkeys(os.path.realpath(each) for each in sys.argv[2:]):
    for each in holders(pathlib.Path(folder, "leases.db")):
        key = (each["network"], each["container_id"], each["ifname"])
        if key not in recorded and is_there(each):
            pod = each["pod"] if "pod" in each.keys() else ""
            print(f"{key[0]}: {pod or key[1]} {key[2]} (static-ip)")
PYTHON
}

# The folders beside $statedir that have leases of networks with a dataDir, as static-ip has listed them.
list_elsewhere() {
    local list=$statedir/leases.folders folder
    local remedy='put it right or remove it (leases that it does not list are neither looked for nor purged)'
    is_there "$list" || return 0
    if [ ! -f "$list" ] || [ -L "$list" ]; then die "$list is no file: $remedy"; fi
    while IFS= read -r folder || [ -n "$folder" ]; do
        case $folder in
        '#'* | '') ;;
        /*) [ ! -e "$folder/leases.db" ] && [ ! -e "$folder/leases.kept" ] || elsewhere+=("$folder") ;;
        *) die "$list: '$folder' is no absolute path: $remedy" ;;
        esac
    done <"$list"
}

commas() {
    local rest
    printf '%s' "$1"
    for rest in "${@:2}"; do printf ', %s' "$rest"; done
}

# purge_elsewhere: such a folder may have other programs' files, too.
purge_elsewhere() {
    local folder name
    for folder in "${elsewhere[@]}"; do
        for name in leases.db{,-wal,-shm,-journal,-wal.lost} leases.{lock,kept,kept.new}; do
            [ ! -f "$folder/$name" ] || rm -f "$folder/$name"
        done
        rmdir "$folder" 2>/dev/null || true
        say "the leases in $folder are removed"
    done
}

refuse_while_used() {
    local found
    [ ! -d "$rundir" ] || [ -x "$rundir" ] || die "$rundir cannot be looked into: run this as root"
    found=$(attachments)
    [ -z "$found" ] || die "there are attachments; delete their pods, or drain the node, and try again:
$found"
    if bridge_follows && ! is_foreign "$cni_bin/cnv-bridge" && ! is_there "$cni_bin/cnv-bridge.before-cnvnet"; then
        die "$cni_bin/bridge is a link to cnv-bridge, and networks of that type would fail: put the reference plugin there first"
    fi
}

ensure_removable() {
    local folder units_in=
    [ ! -e "$systemd_dir/${units[0]}" ] || units_in=$systemd_dir
    for folder in "$cni_bin" "$prefix" $units_in; do [ ! -d "$folder" ] || [ -w "$folder" ] || unwritable "$folder"; done
}

stop_agent() {
    local name pid here=()
    for name in "${units[@]}"; do [ ! -e "$systemd_dir/$name" ] || here+=("$name"); done
    if ((${#here[@]})); then
        ! has_systemd || systemctl disable --quiet --now "${here[@]}"
        for name in "${here[@]}"; do rm "$systemd_dir/$name"; done
        ! has_systemd || systemctl daemon-reload
    fi
    pid=$(agent_pid)
    [ -n "$pid" ] || return 0
    kill "$pid"
    for _ in {1..100}; do
        [ -d "/proc/$pid" ] || return 0
        sleep 0.1
    done
    say "the agent (pid $pid) was asked to end and has not yet"
}

remove_files() {
    local name file
    for name in "${names[@]}"; do
        file=$cni_bin/$name
        ! is_foreign "$file" || continue
        if is_there "$file.before-cnvnet"; then mv -fT "$file.before-cnvnet" "$file"; else rm -f "$file"; fi
    done
    [ "$(readlink "$cni_bin/cnvnet")" != "$prefix" ] || rm "$cni_bin/cnvnet"
    file=${link_into:-/usr/local/bin}/cnvctl
    [ "$(readlink "$file")" != "$prefix/bin/cnvctl" ] || rm "$file"
    if is_environment; then
        find "$prefix/" -mindepth 1 -delete
        rmdir "$prefix" 2>/dev/null || true # fails where it is a mount point
    fi
}

# An agent in a pod leaves a kubeconfig on the node; another one there is an administrator's.
remove_kubeconfig() {
    local file=${CNVNET_KUBECONFIG:-/etc/cnvnet/kubeconfig}
    if [ -f "$file" ] && [ ! -L "$file" ] && grep -q '"current-context": "cnvnet-agent.cnvnet.io"' "$file"; then
        rm "$file"
        rmdir "$(dirname "$file")" 2>/dev/null || true
    fi
}

uninstall_all() {
    python=$prefix/bin/python
    [ -x "$python" ] || python=$(find_python)
    mapfile -t names < <(entries "$python" | cut -d= -f1)
    list_elsewhere
    refuse_while_used
    ensure_removable
    stop_agent
    remove_files
    remove_kubeconfig
    say "cnvnet is no longer in $cni_bin and $prefix"
    if $purge; then
        purge_elsewhere
        rm -rf "$statedir" "$rundir"
        say "$statedir and $rundir are removed with all leases"
    else
        say "what stays: leases in $(commas "$statedir" "${elsewhere[@]}"), records in $rundir (--purge removes them)"
    fi
    say 'what stays: bridges, with their addresses (ip link del BRIDGE), and what is left in nftables' \
        '(nft delete table bridge cnv_bridge; nft delete table inet cnv_masquerade)'
}
