//! What a machine with only a Rust toolchain lacks, and how it gets it.
//!
//! A rule of this module: it installs where it may (apt as root, brew), and everywhere else it
//! prints the one command to type and stops. Nothing is installed that is already there.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::{output, run, succeeds};
use crate::{Failure, Outcome};

/// How much of the machine a command is going to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Build, fetch the default model, run.
    Demo,
    /// The same, and the clients that the tests use.
    Test,
}

/// Something the build or a test needs and Rust does not bring.
struct Need {
    what: &'static str,
    why: &'static str,
    present: fn() -> bool,
    /// Package names for apt, dnf, pacman, zypper, apk and brew, in this order.
    packages: [&'static str; 6],
    only_tests: bool,
}

const NEEDS: [Need; 5] = [
    Need {
        what: "a C and C++ compiler with make",
        why: "llama.cpp, SQLite and jemalloc are compiled from source",
        present: has_compiler,
        packages: ["g++ make", "gcc-c++ make", "gcc make", "gcc-c++ make", "g++ make", "gcc make"],
        only_tests: false,
    },
    Need {
        what: "cmake",
        why: "llama.cpp is built with it",
        present: || succeeds("cmake", &["--version"]),
        packages: ["cmake"; 6],
        only_tests: false,
    },
    Need {
        what: "libclang with its headers",
        why: "bindgen reads llama.cpp's headers with it",
        present: has_libclang,
        packages: [
            "clang libclang-dev",
            "clang-devel",
            "clang",
            "clang-devel",
            "clang-dev",
            "llvm",
        ],
        only_tests: false,
    },
    Need {
        what: "python3 with pip",
        why: "the default model travels in a Python wheel",
        present: || succeeds("python3", &["-m", "pip", "--version"]),
        packages: [
            "python3 python3-pip",
            "python3 python3-pip",
            "python python-pip",
            "python3 python3-pip",
            "python3 py3-pip",
            "python",
        ],
        only_tests: false,
    },
    Need {
        what: "python3 with venv",
        why: "the outside clients of the tests live in an environment of their own",
        present: || succeeds("python3", &["-c", "import venv, ensurepip"]),
        packages: ["python3-venv", "python3", "python", "python3", "python3", "python"],
        only_tests: true,
    },
];

/// Makes sure that everything `scope` uses is there.
///
/// # Errors
///
/// When something is missing and may not be installed from here; the text is the command to type.
pub(crate) fn setup(scope: Scope) -> Outcome<()> {
    if scope == Scope::Test {
        rust_components()?;
    }
    let missing = missing(scope, true);
    if missing.is_empty() {
        return Ok(());
    }
    let manager = Manager::of_this_machine();
    let packages = packages(&missing, manager);
    if !manager.is_some_and(Manager::may_install) {
        return Err(Failure::new(advice(&missing, manager, &packages)));
    }
    if manager == Some(Manager::Apt) {
        install_with_apt(&packages)?;
    } else {
        run(Command::new("brew").arg("install").args(&packages))?;
    }
    let still = self::missing(scope, false);
    if still.is_empty() {
        return Ok(());
    }
    Err(Failure::new(advice(&still, manager, &packages)))
}

/// The tests format and lint; a minimal Rust toolchain comes without either.
fn rust_components() -> Outcome<()> {
    if succeeds("cargo", &["fmt", "--version"]) && succeeds("cargo", &["clippy", "--version"]) {
        println!("  found   rustfmt and clippy (the tests format and lint)");
        return Ok(());
    }
    println!("  MISSING rustfmt and clippy (the tests format and lint)");
    run(Command::new("rustup").args(["component", "add", "rustfmt", "clippy"]))
}

fn missing(scope: Scope, tell: bool) -> Vec<&'static Need> {
    NEEDS
        .iter()
        .filter(|need| scope == Scope::Test || !need.only_tests)
        .filter(|need| {
            let present = (need.present)();
            if tell {
                let state = if present { "found  " } else { "MISSING" };
                println!("  {state} {} ({})", need.what, need.why);
            }
            !present
        })
        .collect()
}

fn install_with_apt(packages: &[String]) -> Outcome<()> {
    // A stale index is no reason to stop: the packages may be in it.
    if let Err(failure) = run(Command::new("apt-get").args(["update", "-q"])) {
        println!("  {failure}\n  going on with the package lists that are here");
    }
    run(Command::new("apt-get")
        .args(["install", "-y", "-q", "--no-install-recommends"])
        .args(packages)
        .env("DEBIAN_FRONTEND", "noninteractive"))
}

fn packages(missing: &[&Need], manager: Option<Manager>) -> Vec<String> {
    let column = manager.unwrap_or(Manager::Apt) as usize;
    let mut packages: Vec<String> = missing
        .iter()
        .flat_map(|need| need.packages[column].split(' '))
        .map(str::to_owned)
        .collect();
    packages.sort();
    packages.dedup();
    packages
}

fn advice(missing: &[&Need], manager: Option<Manager>, packages: &[String]) -> String {
    let mut text = String::from("this machine lacks:\n");
    for need in missing {
        text.push_str(&format!("  - {}: {}\n", need.what, need.why));
    }
    match manager {
        Some(manager) => text.push_str(&format!(
            "install it with\n  {}\nand run this command again",
            manager.command(packages)
        )),
        None => {
            text.push_str("install it with the package manager of this system and run this again")
        }
    }
    text
}

/// A package manager, in the order of [`Need::packages`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manager {
    Apt,
    Dnf,
    Pacman,
    Zypper,
    Apk,
    Brew,
}

impl Manager {
    fn of_this_machine() -> Option<Self> {
        [
            (Self::Apt, "apt-get"),
            (Self::Dnf, "dnf"),
            (Self::Pacman, "pacman"),
            (Self::Zypper, "zypper"),
            (Self::Apk, "apk"),
            (Self::Brew, "brew"),
        ]
        .into_iter()
        .find(|(_, program)| succeeds(program, &["--version"]))
        .map(|(manager, _)| manager)
    }

    /// Whether this tool may install without asking: apt as root, and brew.
    fn may_install(self) -> bool {
        match self {
            Self::Apt => is_root(),
            Self::Brew => true,
            Self::Dnf | Self::Pacman | Self::Zypper | Self::Apk => false,
        }
    }

    fn command(self, packages: &[String]) -> String {
        let packages = packages.join(" ");
        let sudo = if self == Self::Brew || is_root() { "" } else { "sudo " };
        let install = match self {
            Self::Apt => {
                let quiet = "apt-get install -y --no-install-recommends";
                return format!("{sudo}apt-get update && {sudo}{quiet} {packages}");
            }
            Self::Dnf => "dnf install -y",
            Self::Pacman => "pacman -S --needed",
            Self::Zypper => "zypper install -y",
            Self::Apk => "apk add",
            Self::Brew => "brew install",
        };
        format!("{sudo}{install} {packages}")
    }
}

fn is_root() -> bool {
    output(Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0")
}

fn has_compiler() -> bool {
    let works = |variable: &str, programs: &[&str]| match std::env::var(variable) {
        Ok(chosen) => succeeds(&chosen, &["--version"]),
        Err(_) => programs.iter().any(|program| succeeds(program, &["--version"])),
    };
    works("CC", &["cc", "gcc", "clang"])
        && works("CXX", &["c++", "g++", "clang++"])
        && succeeds("make", &["--version"])
}

/// Whether bindgen will find libclang and the headers that belong to it.
fn has_libclang() -> bool {
    if std::env::var_os("LIBCLANG_PATH").is_some() {
        return true;
    }
    let mut folders: Vec<PathBuf> = ["/usr/lib", "/usr/lib64", "/usr/local/lib"]
        .into_iter()
        .flat_map(|folder| {
            let mut all = vec![PathBuf::from(folder)];
            all.extend(children(Path::new(folder)));
            all
        })
        .collect();
    folders.extend(children(Path::new("/usr/lib")).into_iter().map(|folder| folder.join("lib")));
    for folder in [
        "/Library/Developer/CommandLineTools/usr/lib",
        "/Applications/Xcode.app/Contents/Developer/Toolchains/XcodeDefault.xctoolchain/usr/lib",
        "/opt/homebrew/opt/llvm/lib",
        "/usr/local/opt/llvm/lib",
    ] {
        folders.push(PathBuf::from(folder));
    }
    folders.iter().any(|folder| {
        holds_libclang(folder)
            && (succeeds("clang", &["--version"]) || !children(&folder.join("clang")).is_empty())
    })
}

fn holds_libclang(folder: &Path) -> bool {
    children(folder).iter().filter_map(|file| file.file_name()?.to_str()).any(|name| {
        name.starts_with("libclang")
            && !name.starts_with("libclang-cpp")
            && (name.contains(".so") || name.ends_with(".dylib"))
    })
}

fn children(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    entries.flatten().map(|entry| entry.path()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_package_manager_is_given_its_own_names_once() {
        let needs: Vec<&Need> = NEEDS.iter().collect();
        for (manager, expected) in [
            (Manager::Apt, "clang cmake g++ libclang-dev make python3 python3-pip python3-venv"),
            (Manager::Dnf, "clang-devel cmake gcc-c++ make python3 python3-pip"),
            (Manager::Brew, "cmake gcc llvm make python"),
        ] {
            assert_eq!(packages(&needs, Some(manager)).join(" "), expected);
        }
    }

    #[test]
    fn only_apt_and_brew_install_by_themselves() {
        for manager in [Manager::Dnf, Manager::Pacman, Manager::Zypper, Manager::Apk] {
            assert!(!manager.may_install());
        }
        assert!(Manager::Brew.may_install());
    }

    #[test]
    fn the_advice_names_what_why_and_the_command() {
        let needs: Vec<&Need> = NEEDS.iter().filter(|need| need.what == "cmake").collect();
        let packages = packages(&needs, Some(Manager::Dnf));
        let text = advice(&needs, Some(Manager::Dnf), &packages);
        assert!(text.contains("cmake: llama.cpp is built with it"), "{text}");
        assert!(text.contains("dnf install -y cmake"), "{text}");
    }

    #[test]
    fn the_demo_needs_less_than_the_tests() {
        let of = |only_tests| NEEDS.iter().filter(|need| need.only_tests == only_tests).count();
        assert_eq!((of(false), of(true)), (4, 1));
    }
}
