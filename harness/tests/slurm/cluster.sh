#!/usr/bin/env bash
# A private one-node Slurm, entirely inside one directory.
#
#   slurm.sh install     apt-get the packages, then stop and disable what they brought
#   slurm.sh up DIR      bring it up; afterwards `. DIR/env` and use sbatch, squeue, scontrol
#   slurm.sh down DIR    SIGKILL the tasks and the daemons, see that nothing is left; logs stay
#
# Knobs (environment, read by `up`):
#   LAB_CPUS=8          CPUs the node pretends to have: so many 1-CPU tasks run at a time
#   LAB_REQUEUE_WAIT=5  seconds a requeued task waits (cred_expire: less than 5 is not obeyed)
set -euo pipefail

PATH=$PATH:/usr/sbin:/sbin
me=${0##*/}

say() { printf '%s: %s\n' "$me" "$*" >&2; }
die() { say "$*"; exit 1; }

# wait_for SECONDS COMMAND...: poll until the command succeeds.
wait_for() {
    local end=$((SECONDS + $1))
    shift
    until "$@"; do
        ((SECONDS < end)) || return 1
        sleep 0.1
    done
}

# layout DIR: all the names, from the one argument.
layout() {
    [[ -n ${1:-} ]] || die "usage: $me install | up DIR | down DIR"
    dir=$(realpath -m -- "$1")
    # slurm.conf knows no quoting and expands %; and a unix socket's path ends at 107 bytes, the
    # longest here being DIR/spool/n1_JOBID.4294967291.
    [[ $dir =~ ^[A-Za-z0-9/._+-]+$ ]] || die "$dir: only letters, digits and /._+- please"
    ((${#dir} <= 70)) || die "$dir: longer than 70 characters, too long for the sockets inside"
    conf=$dir/etc/slurm.conf
    sock=$dir/run/munge.sock
}

# ours KIND: the living processes of this lab, one pid per line. KIND is munged, daemons, steps or tasks.
# By what /proc says and never by name alone; no pid file to go stale. (/proc's files come and go
# while they are read: hence no word about errors.)
ours() {
    case $1 in
    munged) grep -lzxF -e "--socket=$sock" /proc/[0-9]*/cmdline ;;
    daemons) grep -lzxF -e "$conf" /proc/[0-9]*/cmdline ;;
    steps) find /proc/[0-9]*/fd -lname "$dir/*" ;; # a step's title has replaced its arguments
    tasks) grep -lzxF -e "SLURM_CLUSTER_NAME=${cluster:-?}" /proc/[0-9]*/environ ;;
    esac 2>/dev/null | cut -d/ -f3 | sort -nu | while read -r pid; do
        exe=$(readlink "/proc/$pid/exe") || continue # gone, or a zombie
        case $1:${exe##*/} in
        munged:munged* | daemons:slurmctld* | daemons:slurmd* | steps:slurm*) echo "$pid" ;;
        munged:* | daemons:* | steps:* | tasks:munged* | tasks:slurm*) ;;
        tasks:*) echo "$pid" ;;
        esac
    done || true
}

all_ours() { local kind; for kind in munged daemons steps tasks; do ours "$kind"; done | sort -nu; }
none_left() { [[ -z $(all_ours) ]]; }

and_children() { # pids in; the same and all their descendants out
    { sed 's/^/seed /'; ps -e -o pid= -o ppid=; } | awk '
        $1 == "seed" { if (!in_[$2]++) queue[n++] = $2; next }
        { kids[$2] = kids[$2] " " $1 }
        END {
            for (i = 0; i < n; i++) {
                print queue[i]
                m = split(kids[queue[i]], k, " ")
                for (j = 1; j <= m; j++) if (!in_[k[j]]++) queue[n++] = k[j]
            }
        }'
}

free_port() { # below the kernel's ephemeral range, and nobody listens there
    local port used
    used=$(awk 'FNR > 1 { sub(/.*:/, "", $2); print $2 }' /proc/net/tcp /proc/net/tcp6 2>/dev/null || true)
    while :; do
        port=$((20000 + RANDOM % 12000))
        [[ $port != "${1:-}" ]] || continue
        grep -qiFx "$(printf '%04X' "$port")" <<<"$used" || { echo "$port"; return; }
    done
}

daemon() ( # with a clean environment, no open file of the caller's, and its words in the log
    exec </dev/null >>"$dir/log/start.log" 2>&1
    for fd in /proc/"$BASHPID"/fd/*; do
        fd=${fd##*/}
        ((fd <= 2)) || exec {fd}>&-
    done
    exec env -i PATH="$PATH" HOME=/ LC_ALL=C SLURM_CONF="$conf" "$@"
)

client() { SLURM_CONF=$conf timeout 10 "$@"; }
node_idle() { [[ $(client sinfo -h -o %T 2>/dev/null) == idle ]]; }

write_conf() {
    local host user ctld slurmd
    host=$(hostname -s)
    user=$(id -un)
    ctld=$(free_port)
    slurmd=$(free_port "$ctld")
    cluster=lab${ctld}x$EPOCHSECONDS # never again the same: tasks are known by it
    cat >"$conf" <<END
ClusterName=$cluster
SlurmUser=$user
SlurmdUser=$user
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$ctld
SlurmdPort=$slurmd
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny

AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$sock,cred_expire=${LAB_REQUEUE_WAIT:-5}

StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/run/slurmctld.pid
SlurmdPidFile=$dir/run/slurmd.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/slurmd.log
SlurmctldSyslogDebug=quiet
SlurmdSyslogDebug=quiet
JobCompType=jobcomp/filetxt
JobCompLoc=$dir/log/jobcomp.txt
TmpFS=$dir
MailProg=/bin/true

ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU

SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1
JobRequeue=1
JobFileAppend=1
KillWait=2
MinJobAge=3600
ReturnToService=2
SlurmdTimeout=600
MessageTimeout=30

SlurmdParameters=config_overrides
NodeName=n1 NodeHostname=$host NodeAddr=127.0.0.1 Port=$slurmd CPUs=${LAB_CPUS:-8} State=UNKNOWN
PartitionName=main Nodes=n1 Default=YES MaxTime=INFINITE State=UP
END
}

up() {
    ((${LAB_REQUEUE_WAIT:-5} >= 5)) || die "LAB_REQUEUE_WAIT: below 5 Slurm falls back to 120"
    local cmd try pids
    for cmd in munged slurmctld slurmd sbatch; do
        command -v "$cmd" >/dev/null || die "$cmd is missing: $me install"
    done
    cluster=
    none_left || die "$dir: already up (or not wholly down): $me down $dir"
    [[ -e $dir/.slurm-lab || ! -e $dir || -z $(ls -A "$dir") ]] ||
        die "$dir: not empty, and not one of mine"
    mkdir -p "$dir"
    : >"$dir/.slurm-lab"
    rm -rf "${dir:?}"/{etc,run,state,spool,log,env}
    (umask 022 && mkdir "$dir"/{etc,run,state,spool,log})
    (umask 077 && head -c 128 /dev/urandom >"$dir/etc/munge.key")

    trap 'say "failed; the logs are in $dir/log"; tail -n 5 "$dir"/log/*.log >&2; stop' EXIT
    daemon munged --key-file="$dir/etc/munge.key" --socket="$sock" --pid-file="$dir/run/munged.pid" \
        --log-file="$dir/log/munged.log" --seed-file="$dir/run/munged.seed"
    for try in 1 2 3; do # another port each time, should somebody have been faster
        write_conf
        if daemon slurmctld -f "$conf" && wait_for 10 client scontrol ping >/dev/null 2>&1; then
            break
        fi
        ((try < 3)) || exit 1
        mapfile -t pids < <(ours daemons)
        ((${#pids[@]} == 0)) || kill -KILL "${pids[@]}" 2>/dev/null || true
    done
    daemon slurmd -f "$conf"
    wait_for 60 node_idle || exit 1
    trap - EXIT
    echo "export SLURM_CONF=$conf" >"$dir/env"
    say "up: . $dir/env"
}

# stop: SIGKILL, round by round, until a look finds nothing. The state is thrown away anyhow, and
# gentleness is slow: scancel (--signal=KILL too) begins with SIGTERM and waits, and slurmctld with a
# task in COMPLETING takes more than 10 s to end.
stop() {
    local pids end=$((SECONDS + 20))
    trap - EXIT
    cluster=$({ sed -n 's/^ClusterName=//p' "$conf"; } 2>/dev/null || true)
    [[ -z $cluster || ${SLURM_CLUSTER_NAME:-} != "$cluster" ]] || die "not from inside one of its tasks"
    while mapfile -t pids < <(all_ours | and_children) && ((${#pids[@]})); do
        ((SECONDS < end)) || { say "still there: ${pids[*]}"; return 1; }
        kill -KILL "${pids[@]}" 2>/dev/null || true # some are gone already
        sleep 0.1
    done
}

down() {
    [[ -e $dir/.slurm-lab ]] || die "$dir: not one of mine"
    stop || exit 1
    rm -rf "${dir:?}"/{run,state,spool,env}
    say "down: nothing left running; the logs are in $dir/log"
}

install_packages() {
    local unit
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends slurm-wlm munge
    for unit in slurmd slurmctld munge; do
        if [[ -d /run/systemd/system ]]; then
            systemctl stop "$unit"
        else
            service "$unit" stop || true
        fi
        systemctl disable "$unit"
    done
}

case ${1:-} in
install) install_packages ;;
up | down)
    layout "${2:-}"
    "$1"
    ;;
*) die "usage: $me install | up DIR | down DIR" ;;
esac
