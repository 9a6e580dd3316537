//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::disk::plan::Mode;
use crate::file_system::{Axis, FileSystem};
use crate::plan::Granularity;
use crate::shard::Shard;

/// Kills a program while it saves its state, and shows what is left.
#[derive(Debug, Parser)]
#[command(name = "crashtest", version, after_help = AFTER_HELP, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const AFTER_HELP: &str = "Exit status: 0 every expectation held; 1 a violation that was not \
    expected, or an expected one that vanished; 2 usage; 3 the unbroken run failed; 4 no fault \
    struck; 5 this machine lacks what was asked for; 70 internal error; 130 interrupted.";

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a scenario on built-in strategies, or on any program
    Run(Box<Run>),
    /// Show a kept run again, or several as one
    Report(Box<Report>),
    /// Put the shards of a run together
    Merge(Merge),
    /// Compare two reports: what got worse
    Compare(Compare),
    /// Run the usual scenarios on a program, and say in a few lines what is wrong and what to do; for tests
    Check(Box<Check>),
    /// Run every scenario on a program, and write down what an auditor would
    Audit(Box<Audit>),
    /// Record one run of a program in a file, and print what it did
    Record(Box<Record>),
    /// Print what a recorded run did
    Timeline(Timeline),
    /// Run one trial again, show what it leaves and keep the directory
    Replay(Replay),
    /// List what there is: scenarios, strategies, kept runs, kept violations
    List(List),
    /// Say what this machine can do, and what to do about what it can't
    Doctor,
    /// Print a script that completes the command line in a shell
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Print the manual page
    Man,
}

impl Command {
    /// Whether the command starts programs.
    #[must_use]
    pub fn runs_programs(&self) -> bool {
        match self {
            Self::Run(_)
            | Self::Check(_)
            | Self::Audit(_)
            | Self::Record(_)
            | Self::Replay(_)
            | Self::Doctor => true,
            Self::Report(_)
            | Self::Merge(_)
            | Self::Compare(_)
            | Self::Timeline(_)
            | Self::List(_)
            | Self::Completions { .. }
            | Self::Man => false,
        }
    }
}

/// `crashtest run`.
#[derive(Clone, Debug, Default, Args)]
pub struct Run {
    /// A built-in scenario, several separated by commas, `all` of them, or the path of a scenario file
    #[arg(long, default_value = "sigkill", value_name = "NAME,...|PATH")]
    pub scenario: String,
    /// Built-in strategies to test, separated by commas, or `all` [default: the scenario's]
    #[arg(long, value_name = "NAME", value_delimiter = ',', conflicts_with = "program")]
    pub strategy: Vec<String>,
    /// Test a recorded run, and run nothing; for the scenario poweroff, and for sigkill --exhaustive
    #[arg(long, value_name = "FILE", conflicts_with_all = ["program", "strategy"])]
    pub recording: Option<PathBuf>,
    /// What draws everything that is drawn [default: a new one, which is printed]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Trials of each subject [default: the scenario's; of a program at most 500; a sweep has as
    /// many as it needs]
    #[arg(long, value_name = "N")]
    pub trials: Option<u64>,
    /// The same where places are drawn, for whoever runs several scenarios
    #[arg(skip)]
    pub drawn: Option<u64>,
    /// Where faults may strike [default: the scenario's]
    #[arg(long, value_enum)]
    pub granularity: Option<Granularity>,
    /// The file system that runs full, or those whose power is cut, separated by commas; all but tmpfs
    /// need root [default: the scenario's]
    #[arg(long, value_enum, value_name = "KIND", value_delimiter = ',')]
    pub fs: Vec<FileSystem>,
    /// Size of that file system, such as 64M or 20000K [default: about the least that it can have]
    #[arg(long, value_name = "SIZE")]
    pub fs_size: Option<String>,
    /// What runs out on it, separated by commas [default: space, and inodes where they are counted]
    #[arg(long, value_enum, value_name = "WHAT", value_delimiter = ',')]
    pub axis: Vec<Axis>,
    /// On a full file system: besides letting the program go on, kill it before each call that it
    /// makes after the first that failed
    #[arg(long, value_enum, value_name = "WHAT")]
    pub then: Option<ThenArg>,
    /// How many calls fail in one run: 2 for each pair of a failure and another in its handling; of a
    /// loss of power: 2 for another one in the recovery of each survivor
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=2))]
    pub depth: Option<u8>,
    /// Of a kill: derive every state from one recording, byte by byte, and really make some of them
    #[arg(long, conflicts_with_all = ["trials", "timing", "granularity"])]
    pub exhaustive: bool,
    /// How many of those are really made, violations first [default: 50]
    #[arg(long, value_name = "N", requires = "exhaustive")]
    pub confirm: Option<u64>,
    /// Of a loss of power: the profiles of file systems, separated by commas; a built-in one or the path
    /// of a profile file [default: the scenario's]
    #[arg(long, value_name = "NAME|PATH", value_delimiter = ',')]
    pub profile: Vec<String>,
    /// Of a loss of power: how many crash states there may be before a sample must do
    #[arg(long, value_name = "N")]
    pub states_max: Option<u64>,
    /// About how many distinct survivors of a loss of power a load or a check of a program is asked, on all profiles
    /// together
    #[arg(long, value_name = "N")]
    pub asked_max: Option<usize>,
    /// Of a loss of power: begin without a state file, so that the first save makes it
    #[arg(long, conflicts_with = "program")]
    pub first_save: bool,
    /// Of a power cut: how the file systems are mounted, as for mount -o
    #[arg(long, value_name = "OPTIONS")]
    pub mount_opts: Option<String>,
    /// Of a power cut: when what is in memory is written back, separated by commas; all but never and
    /// slow make a recording for each op boundary [default: the scenario's]
    #[arg(long, value_enum, value_name = "WHEN", value_delimiter = ',')]
    pub write_back: Vec<Mode>,
    /// Of a power cut: hold writes of file data in flight in all recordings, as a slow disk does
    #[arg(long)]
    pub slow_writes: bool,
    /// Of a power cut: how many images of each subject on each file system, about; of each recording at
    /// least one
    #[arg(long, value_name = "N")]
    pub images_max: Option<u64>,
    /// Of a power cut: let the tool of the file system look at each image once it has been mounted
    #[arg(long)]
    pub fsck: bool,
    /// Of a power cut: a program that serves until it is ended; it is not followed, and the power goes at
    /// random moments of so many seconds, counted from the first ack
    #[arg(long, value_name = "SECONDS", requires = "program")]
    pub during: Option<f64>,
    /// Shell command that works with that program and prints a line for each answer it got, which is an
    /// ack; on each image the program is started again, and `--check` asks it
    #[arg(long, value_name = "CMD", requires = "during")]
    pub client: Option<String>,
    /// Kill after a random time instead, with no tracing at all
    #[arg(long)]
    pub timing: bool,
    /// Size of a built-in strategy's state in bytes, 1024 to 16777216
    #[arg(long, value_name = "BYTES", conflicts_with = "program")]
    pub state_bytes: Option<usize>,
    /// How often a built-in strategy saves in one trial
    #[arg(long, value_name = "N", conflicts_with = "program")]
    pub saves: Option<u64>,
    /// Workers [default: the CPUs that may be used]
    #[arg(long, short = 'j', value_name = "N")]
    pub jobs: Option<usize>,
    /// Parent of the trial directories [default: /dev/shm, or else the temporary directory]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Do this part of the run only, such as 3/16, on as many machines as there are parts; `merge` puts them
    /// together [default: what a scheduler says in CRASHTEST_SHARD, TEST_SHARD_INDEX, SLURM_ARRAY_TASK_ID or
    /// JOB_COMPLETION_INDEX]
    #[arg(long, value_name = "I/N", value_parser = |text: &str| text.parse::<Shard>().map_err(|e| e.to_string()))]
    pub shard: Option<Shard>,
    /// Go on with a run that was interrupted
    #[arg(long, value_name = "RUN", conflicts_with_all = ["program", "strategy", "seed", "trials", "granularity", "timing", "fs", "fs_size", "axis", "then", "depth", "profile", "states_max", "asked_max", "first_save", "mount_opts", "write_back", "slow_writes", "images_max", "fsck", "during", "shard"])]
    pub resume: Option<String>,
    /// Keep the whole directory of each violation that is kept, beside its survivor
    #[arg(long)]
    pub keep: bool,
    /// Print the report as JSON instead of the table
    #[arg(long)]
    pub json: bool,
    /// Other forms of the report
    #[command(flatten)]
    pub formats: Formats,
    /// Print nothing but the result
    #[arg(long, short)]
    pub quiet: bool,
    /// Say more: what the unbroken runs did
    #[arg(long, short, conflicts_with = "quiet")]
    pub verbose: bool,
    /// Where results are kept
    #[command(flatten)]
    pub results: Results,
    /// What is known about the program
    #[command(flatten)]
    pub about: About,
    /// The program to test, with its arguments; `{dir}` stands for the trial directory
    #[arg(last = true, value_name = "PROGRAM")]
    pub program: Vec<String>,
}

/// `crashtest audit`.
#[derive(Debug, Args)]
pub struct Audit {
    /// Audit a built-in strategy instead of a program
    #[arg(long, value_name = "NAME", conflicts_with = "program")]
    pub strategy: Option<String>,
    /// Look for the same patterns in the Python sources of this directory, or in this file; what is found
    /// is reported as hints
    #[arg(long, value_name = "PATH")]
    pub source: Option<PathBuf>,
    /// Write the document there as Markdown
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Write the document there as JSON
    #[arg(long, value_name = "FILE")]
    pub json_output: Option<PathBuf>,
    /// Print it as JSON instead of Markdown
    #[arg(long)]
    pub json: bool,
    /// What is run
    #[command(flatten)]
    pub examined: Examined,
}

/// What `audit` and `check` run, and on what.
#[derive(Clone, Debug, Default, Args)]
pub struct Examined {
    /// Only these scenarios, separated by commas [default: of an audit, all that this machine can run; of a
    /// check, sigkill, errno, enospc and poweroff]
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub scenario: Vec<String>,
    /// What draws everything that is drawn [default: of an audit, a new one, which is printed; of a check, 1]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Trials in each scenario that has no end by itself, the most of one that has [default: of an audit, the
    /// scenario's; of a check, 100, and all of a sweep]
    #[arg(long, value_name = "N")]
    pub trials: Option<u64>,
    /// Trials where places are drawn, unless that is said
    #[arg(skip)]
    pub drawn: Option<u64>,
    /// The scenarios that are run, as far as this machine can, if none is named
    #[arg(skip)]
    pub usual: Vec<String>,
    /// How many images of each real file system, about
    #[arg(long, value_name = "N")]
    pub images_max: Option<u64>,
    /// Workers [default: the CPUs that may be used]
    #[arg(long, short = 'j', value_name = "N")]
    pub jobs: Option<usize>,
    /// Parent of the trial directories [default: /dev/shm, or else the temporary directory]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Print nothing but the document
    #[arg(long, short)]
    pub quiet: bool,
    /// Where results are kept
    #[command(flatten)]
    pub results: Results,
    /// What is known about the program
    #[command(flatten)]
    pub about: About,
    /// The program, with its arguments; `{dir}` stands for the trial directory
    #[arg(last = true, value_name = "PROGRAM")]
    pub program: Vec<String>,
}

/// `crashtest check`.
#[derive(Debug, Args)]
pub struct Check {
    /// Fail on risks of medium level too, such as a save that is acknowledged before it is on disk
    #[arg(long)]
    pub strict: bool,
    /// Print the whole audit as JSON
    #[arg(long)]
    pub json: bool,
    /// What is run
    #[command(flatten)]
    pub examined: Examined,
}

/// `crashtest report`.
#[derive(Debug, Args)]
pub struct Report {
    /// The runs: their names, as `crashtest list runs` has them, or their directories
    #[arg(required = true, value_name = "RUN")]
    pub runs: Vec<String>,
    /// Print the report as JSON instead of the table
    #[arg(long)]
    pub json: bool,
    /// Other forms of the report
    #[command(flatten)]
    pub formats: Formats,
    /// Where results are kept
    #[command(flatten)]
    pub results: Results,
}

/// `crashtest merge`.
#[derive(Debug, Args)]
pub struct Merge {
    /// The shards: their names, their directories, or a directory that holds nothing but the shards of a run
    #[arg(required = true, value_name = "RUN")]
    pub runs: Vec<String>,
    /// Merge what there is, even if shards are missing or were cut short
    #[arg(long)]
    pub partial: bool,
    /// Print the report as JSON instead of the table
    #[arg(long)]
    pub json: bool,
    /// Other forms of the report
    #[command(flatten)]
    pub formats: Formats,
    /// Where the whole run is kept, and where shards are looked for by name
    #[command(flatten)]
    pub results: Results,
}

/// `crashtest compare`.
#[derive(Debug, Args)]
pub struct Compare {
    /// The earlier report: what --json printed, or the name or the directory of a run
    pub before: String,
    /// The later one
    pub after: String,
    /// How often chance may look like something that got worse, in all comparisons together
    #[arg(long, value_name = "P", default_value_t = crate::compare::ALPHA)]
    pub alpha: f64,
    /// Print the comparison as JSON
    #[arg(long)]
    pub json: bool,
    /// Where results are kept
    #[command(flatten)]
    pub results: Results,
}

/// `crashtest record`.
#[derive(Debug, Args)]
pub struct Record {
    /// The file
    #[arg(long, short, default_value = "recording.jsonl", value_name = "FILE")]
    pub output: PathBuf,
    /// Parent of the directory in which it runs [default: /dev/shm, or else the temporary directory]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Print nothing
    #[arg(long, short)]
    pub quiet: bool,
    /// What is known about the program
    #[command(flatten)]
    pub about: About,
    /// The program, with its arguments; `{dir}` stands for the directory in which it runs
    #[arg(last = true, value_name = "PROGRAM", required = true)]
    pub program: Vec<String>,
}

/// `crashtest timeline`.
#[derive(Debug, Args)]
pub struct Timeline {
    /// The recording
    pub file: PathBuf,
}

/// Options about the program under test.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "The program under test")]
pub struct About {
    /// What reports call it [default: its script's file name, or its own]
    #[arg(long, value_name = "NAME", requires = "program")]
    pub name: Option<String>,
    /// Glob of its state files, relative to the trial directory; may be given more than once
    /// [default: the files that the unbroken run leaves changed]
    #[arg(long, value_name = "GLOB", requires = "program")]
    pub state: Vec<String>,
    /// Regular expression for a line on its stdout that acknowledges a save; exit status 0
    /// acknowledges the last one in any case
    #[arg(long, value_name = "REGEX", requires = "program")]
    pub ack: Option<String>,
    /// Shell command, run in the directory with what survived; status 0 says it is sound
    #[arg(long, value_name = "CMD", requires = "program")]
    pub check: Option<String>,
    /// Shell command, run there too, that loads the state as the program would at its next start; what it prints
    /// to stdout is the state that the program would start with, and is compared with what it printed after each
    /// ack; if it prints the same for different saves, only its status counts
    #[arg(long = "load", visible_alias = "recover", value_name = "CMD", requires = "program")]
    pub recover: Option<String>,
    /// Shell command, run there too, that restores the state from a copy, for which `{backup}` stands
    #[arg(long, value_name = "CMD", requires = "program")]
    pub restore: Option<String>,
    /// Shell command that serves as the program's broker at 127.0.0.1:{port}, in a directory of its own; the
    /// program finds it at the address that `{broker}` stands for among its arguments, and in
    /// CRASHTEST_BROKER; for the scenarios disconnect and stale
    #[arg(long, value_name = "CMD", requires = "program")]
    pub broker: Option<String>,
    /// Shell command that lets that broker's ledger move on; for the scenario stale
    #[arg(long, value_name = "CMD", requires = "broker")]
    pub settle: Option<String>,
    /// JSON Schema that the state must satisfy
    #[arg(long, value_name = "FILE", requires = "program")]
    pub schema: Option<PathBuf>,
    /// CEL expression that must hold, such as `state.peak >= state.balance`; may be given more
    /// than once
    #[arg(long, value_name = "EXPR", requires = "program")]
    pub invariant: Vec<String>,
    /// Promises to judge, separated by commas: atomic, durable, checked, recoverable, honest, tidy; for a
    /// format that may be half written because its load repairs it, leave out atomic
    /// [default: the scenario's, as far as the other options let them be judged]
    #[arg(long, value_name = "NAME", value_delimiter = ',', requires = "program")]
    pub promise: Vec<String>,
    /// Directory that is copied into each trial directory first
    #[arg(long, value_name = "DIR", requires = "program")]
    pub init: Option<PathBuf>,
    /// Environment variable for the program; may be given more than once. Values are not written into results:
    /// `replay` and `--resume` ask for them again
    #[arg(long, value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// Write the values of these variables of --env into results, separated by commas
    #[arg(long, value_name = "NAME", value_delimiter = ',', requires = "env")]
    pub keep_env: Vec<String>,
    /// Insist on a sandbox, and follow what the program does outside its trial directory even if the baseline
    /// run writes nothing there. Without this option the sandbox is used wherever the machine has one
    #[arg(long, requires = "program")]
    pub sandbox: bool,
    /// Let the program write to these files and directories of this machine, which must exist; may be given
    /// more than once
    #[arg(long, value_name = "GLOB", requires = "program")]
    pub allow_write: Vec<String>,
    /// Run the program, and what looks at its state, as this user; only root can
    #[arg(long, value_name = "NAME", requires = "program")]
    pub user: Option<String>,
    /// How long its unbroken run may take, in seconds [default: 30]
    #[arg(long, value_name = "SECONDS", requires = "program")]
    pub timeout: Option<u64>,
    /// How many MiB it may write in one run [default: 256]
    #[arg(long, value_name = "MIB", requires = "program")]
    pub max_data: Option<u64>,
    /// How many processes and threads it may have at once [default: 256]
    #[arg(long, value_name = "N", requires = "program")]
    pub max_processes: Option<usize>,
    /// How many acks end a run that does not end by itself [default: 10]
    #[arg(long, value_name = "N", requires = "ack")]
    pub acks: Option<u64>,
}

/// Other forms of a report.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Reports")]
pub struct Formats {
    /// Write the report there as one HTML file that needs no network
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Write the report there as JUnit XML: a suite per scenario, a case per strategy
    #[arg(long, value_name = "FILE")]
    pub junit: Option<PathBuf>,
    /// Append the report there as Markdown, at most 900 KiB, as for a job's summary
    #[arg(long, value_name = "FILE")]
    pub markdown: Option<PathBuf>,
    /// Print what is not as expected as annotations of GitHub Actions, at most 10, and append the Markdown to
    /// the job's summary
    #[arg(long)]
    pub github: bool,
    /// Compare with an earlier report (what --json printed, or a run): only what got worse is a failure then
    #[arg(long, value_name = "FILE|RUN")]
    pub baseline: Option<String>,
}

/// Where results are kept.
#[derive(Clone, Debug, Default, Args)]
pub struct Results {
    /// Where results are kept
    #[arg(long = "results", value_name = "DIR", env = "CRASHTEST_RESULTS", default_value = crate::results::DEFAULT_ROOT)]
    pub root: PathBuf,
}

/// `crashtest replay`.
#[derive(Debug, Args)]
pub struct Replay {
    /// The id that the table printed, or the beginning of it
    pub id: String,
    /// Where to keep the directory [default: a new one in the temporary directory]
    #[arg(long, value_name = "DIR")]
    pub keep: Option<PathBuf>,
    /// An environment variable that the program had in that run, and whose value was not kept
    #[arg(long, value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// Print the facts as JSON
    #[arg(long)]
    pub json: bool,
    /// Where results are kept
    #[command(flatten)]
    pub results: Results,
}

/// `crashtest list`.
#[derive(Debug, Args)]
pub struct List {
    /// What to list [default: scenarios and strategies]
    #[arg(value_enum)]
    pub what: Option<Listed>,
    /// Where results are kept
    #[command(flatten)]
    pub results: Results,
}

/// What can be listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Listed {
    /// The built-in scenarios
    Scenarios,
    /// The built-in strategies
    Strategies,
    /// The kept runs
    Runs,
    /// The violations that can be replayed
    Violations,
}

/// What happens when the disk is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ThenArg {
    /// The program is killed
    Kill,
    /// It goes on
    GoOn,
}
