#!/bin/sh
# Makes leases_378e07b.db, the leases as commit 378e07b wrote them (schema 1):
#
#   git archive 378e07b | tar xC OLD && tests/data/leases_378e07b.sh OLD tests/data/leases_378e07b.db
#
# In it are, of network blue: VMs that run (with a UID, with a wanted address and MAC), one that migrates, one that is
# restarted while its last pod ends, one that is stopped, one whose address is cooling down; a container; and a pod of
# Kubernetes. Of network red: a VM with an address of each family.
set -eu
old=$1 out=$2
state=$(mktemp -d)
trap 'rm -rf "$state"' EXIT

# call COMMAND CONTAINER CNI_ARGS [NETWORK [IPAM KEYS]]
call() {
    printf '{"cniVersion": "1.1.0", "name": "%s", "ipam": {"type": "static-ip", %s}}' \
        "${4:-blue}" "${5:-\"subnet\": \"10.1.0.0/24\"}" |
        CNI_COMMAND=$1 CNI_CONTAINERID=$2 CNI_ARGS=$3 CNI_NETNS=/run/netns/$2 CNI_IFNAME=eth0 CNI_PATH=/nowhere \
            CNVNET_STATEDIR=$state CNVNET_AGENT=off PYTHONPATH=$old \
            python3 -P -c 'from cnvnet.ipam.static_ip import main; main()' >/dev/null
}

call ADD run-1 'VM_NAME=running;VM_UID=uid-1;IP=10.1.0.10;MAC=0a:63:00:00:00:10'
call ADD move-1 'VM_NAME=moving;VM_UID=uid-2'
call ADD move-2 'VM_NAME=moving;VM_UID=uid-2;VM_ROLE=target'
call ADD again-1 'VM_NAME=restarted'
call ADD again-2 'VM_NAME=restarted'
call ADD stop-1 'VM_NAME=stopped;VM_NAMESPACE=prod;VM_UID=uid-3'
call DEL stop-1 ''
call ADD cool-1 'VM_NAME=cooling;VM_UID=uid-4' blue '"subnet": "10.1.0.0/24", "release": "pod", "cooldown": "366d"'
call DEL cool-1 ''
call ADD plain-1 ''
call ADD pod-1 'K8S_POD_NAMESPACE=prod;K8S_POD_NAME=web;K8S_POD_UID=uid-5;K8S_POD_INFRA_CONTAINER_ID=pod-1' \
    blue '"subnet": "10.1.0.0/24", "nodeLocal": true'
call ADD both-1 'VM_NAME=both' red '"ranges": [[{"subnet": "10.2.0.0/24"}], [{"subnet": "fd00:2::/64"}]]'
# The log is part of the database as long as it is there.
sqlite3 "$state/leases.db" 'PRAGMA wal_checkpoint(TRUNCATE); VACUUM' >/dev/null
cp "$state/leases.db" "$out"
