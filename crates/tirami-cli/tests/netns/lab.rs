//! Network namespaces for five machines, and a slow wire between each two of them.
//!
//! The machines' frames go over UDP (VXLAN) through a process of this test, which delays them and
//! loses some; so it needs no queueing discipline of the kernel. Everything is in namespaces of its
//! own, named by this process, and goes with [`Lab`], also on a panic.

#![allow(unreachable_pub, reason = "shared by test files, as the other support modules are")]
#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]
#![allow(clippy::print_stdout, reason = "its process tells the test that it is ready")]

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, TcpStream, UdpSocket};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// What a packet needs from one machine to another, and how many of a thousand never arrive.
pub const WIRE_DELAY: Duration = Duration::from_millis(30);
pub const WIRE_LOSS_PER_MILLE: u64 = 10;
/// The same at each of the two ends of a machine's cable: a packet passes two of these.
const END_DELAY_AND_LOSS: &str = "delay 15ms loss 0.5%";

/// Machines that stay on the left when the network is cut in two; the others are on the right.
const LEFT: usize = 3;
const MACHINES: usize = 5;
/// Datagrams that are sent to another machine and back to see what the wire does to them.
pub const TRIPS: usize = 1_000;
/// How long another machine may take until it sends back the first of them, and each.
const ECHOES_WITHIN: Duration = Duration::from_secs(20);
const BACK_WITHIN: Duration = Duration::from_secs(1);
const ECHO_PORT: u16 = 7;
const VXLAN_PORT: u16 = 4789;
const WIRE_ADDRESS: &str = "10.211.0.2";
/// Where in a packet of VXLAN the last byte of the network's number stands, and the frame.
const NETWORK: usize = 6;
const ETHERNET: usize = 8;
/// Says what this test binary is to be when it is started in a namespace.
const ROLE: &str = "TIRAMI_NETNS_ROLE";
const SOCKET: &str = "TIRAMI_NETNS_SOCKET";
/// What stands before the µs of the shortest trip and the number of datagrams that came back.
const ROUND_TRIPS: &str = "round trips: ";
/// The test that plays the roles.
pub const ROLES_TEST: &str = "inside_a_namespace";

/// Whether this process may make network namespaces; if not, why.
pub fn refusal() -> Option<String> {
    let probe = format!("tirami-probe-{}", std::process::id());
    match Command::new("ip").args(["netns", "add", &probe]).output() {
        Err(error) => Some(format!("there is no `ip`: {error}")),
        Ok(output) if !output.status.success() => {
            Some(String::from_utf8_lossy(&output.stderr).trim().to_owned())
        }
        Ok(_) => {
            let made =
                ip(&["-n", &probe, "link", "add", "p0", "type", "veth", "peer", "name", "p1"]);
            let _ = ip(&["netns", "del", &probe]);
            made.err()
        }
    }
}

/// What datagrams met between one machine and another and back.
pub struct Trips {
    pub shortest: Duration,
    /// Of [`TRIPS`] datagrams, those that did not come back.
    pub lost: usize,
}

/// What joins the machines.
enum Wire {
    /// A process; while a file lies there, it carries nothing from the left to the right.
    Relay(PathBuf),
    /// Cables to two switches, and one between these.
    Cables,
}

/// The machines and their network.
pub struct Lab {
    prefix: String,
    wire: Wire,
    helpers: Vec<Child>,
    doors: PathBuf,
}

impl Lab {
    /// Builds all of it; `doors` is an empty folder for this lab's sockets. Why not, where the
    /// kernel can make no slow wire.
    pub fn new(doors: &Path) -> Result<Self, String> {
        let prefix = format!("tirami-{}", std::process::id());
        let wire = Wire::Relay(doors.join("cut"));
        let mut lab = Self { prefix, wire, helpers: Vec::new(), doors: doors.to_path_buf() };
        lab.add_namespace("sw");
        for machine in 1..=MACHINES {
            lab.add_namespace(&machine.to_string());
            lab.play(&lab.machine(machine), "door", &lab.door(machine));
        }
        if let Err(reason) = lab.join_by_relay() {
            lab.join_by_cables(&reason)?;
        }
        for machine in 1..=MACHINES {
            let name = lab.machine(machine);
            must(&["-n", &name, "addr", "add", &address(machine), "dev", "eth0"]);
            must(&["-n", &name, "link", "set", "eth0", "up"]);
        }
        Ok(lab)
    }

    fn namespace(&self, suffix: &str) -> String {
        format!("{}-{suffix}", self.prefix)
    }

    /// The namespace of a machine, counted from 1.
    pub fn machine(&self, machine: usize) -> String {
        self.namespace(&machine.to_string())
    }

    fn door(&self, machine: usize) -> PathBuf {
        self.doors.join(format!("door-{machine}"))
    }

    fn add_namespace(&self, suffix: &str) {
        let name = self.namespace(suffix);
        must(&["netns", "add", &name]);
        must(&["-n", &name, "link", "set", "lo", "up"]);
    }

    /// Starts this test binary in a namespace.
    fn play(&mut self, namespace: &str, role: &str, socket: &Path) {
        let child = Command::new("ip")
            .args(["netns", "exec", namespace])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", ROLES_TEST, "--nocapture"])
            .env(ROLE, role)
            .env(SOCKET, socket)
            .stdout(Stdio::null())
            .spawn();
        self.helpers.push(child.unwrap());
    }

    /// The machines' frames go over UDP to a process that delays and loses them.
    fn join_by_relay(&mut self) -> Result<(), String> {
        let (switch, wire) = (self.namespace("sw"), self.namespace("wire"));
        self.add_namespace("wire");
        ip(&[
            "-n", &switch, "link", "add", "w0", "type", "veth", "peer", "name", "w1", "netns",
            &wire,
        ])?;
        for (namespace, link, address) in
            [(&switch, "w0", "10.211.0.1/24"), (&wire, "w1", "10.211.0.2/24")]
        {
            ip(&["-n", namespace, "addr", "add", address, "dev", link])?;
            // Room for the frames of the machines and the header around them.
            ip(&["-n", namespace, "link", "set", link, "mtu", "1600", "up"])?;
        }
        let port = VXLAN_PORT.to_string();
        for machine in 1..=MACHINES {
            let (link, number) = (format!("x{machine}"), machine.to_string());
            let end = ["id", &number, "remote", WIRE_ADDRESS, "dstport", &port, "dev", "w0"];
            let add = ["-n", &switch, "link", "add", &link, "mtu", "1500", "type", "vxlan"];
            ip(&[add.as_slice(), end.as_slice()].concat())?;
            // What it carries goes on through the namespace that it was made in.
            let name = self.machine(machine);
            ip(&["-n", &switch, "link", "set", &link, "netns", &name, "name", "eth0"])?;
        }
        if let Wire::Relay(cut) = &self.wire {
            let cut = cut.clone();
            self.play(&wire, "relay", &cut);
        }
        Ok(())
    }

    /// Without VXLAN each machine has a cable to a switch that the kernel slows down, where it can.
    fn join_by_cables(&mut self, reason: &str) -> Result<(), String> {
        self.wire = Wire::Cables;
        let switch = self.namespace("sw");
        for bridge in ["br0", "br1"] {
            must(&["-n", &switch, "link", "add", bridge, "type", "bridge"]);
            must(&["-n", &switch, "link", "set", bridge, "up"]);
        }
        must(&["-n", &switch, "link", "add", "y0", "type", "veth", "peer", "name", "y1"]);
        for (link, bridge) in [("y0", "br0"), ("y1", "br1")] {
            must(&["-n", &switch, "link", "set", link, "master", bridge, "up"]);
        }
        for machine in 1..=MACHINES {
            let (name, port) = (self.machine(machine), format!("v{machine}"));
            let veth = ["type", "veth", "peer", "name", "eth0", "netns", &name];
            must(&[["-n", &switch, "link", "add", &port].as_slice(), veth.as_slice()].concat());
            let bridge = if is_left(machine) { "br0" } else { "br1" };
            must(&["-n", &switch, "link", "set", &port, "master", bridge, "up"]);
            for (namespace, link) in [(&switch, port.as_str()), (&name, "eth0")] {
                let netem = format!("qdisc add dev {link} root netem {END_DELAY_AND_LOSS}");
                let mut tc = Command::new("tc");
                tc.args(["-n", namespace]).args(netem.split(' '));
                if !tc.output().is_ok_and(|output| output.status.success()) {
                    return Err(format!("a slow wire needs VXLAN ({reason}) or netem"));
                }
            }
        }
        Ok(())
    }

    /// Sends datagrams from one machine to another and back.
    pub fn trips(&self, from: usize, to: usize) -> Trips {
        let mut command = self.command(from, std::env::current_exe().unwrap().to_str().unwrap());
        command.args(["--exact", ROLES_TEST, "--nocapture"]);
        let to = address(to).replace("/24", "");
        let output = command.env(ROLE, "traveller").env(SOCKET, to).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let figures = text.lines().find_map(|line| {
            let (shortest, back) = line.split_once(ROUND_TRIPS)?.1.split_once(' ')?;
            Some((shortest.parse().ok()?, back.parse::<usize>().ok()?))
        });
        let (shortest, back) = figures.unwrap_or_else(|| panic!("{output:?}"));
        Trips { shortest: Duration::from_micros(shortest), lost: TRIPS - back }
    }

    /// Cuts the network: the machines on the left and on the right do not reach each other.
    pub fn cut(&self) {
        match &self.wire {
            Wire::Relay(cut) => drop(std::fs::File::create(cut).unwrap()),
            Wire::Cables => must(&["-n", &self.namespace("sw"), "link", "set", "y0", "down"]),
        }
    }

    /// Mends it.
    pub fn mend(&self) {
        match &self.wire {
            Wire::Relay(cut) => std::fs::remove_file(cut).unwrap(),
            Wire::Cables => must(&["-n", &self.namespace("sw"), "link", "set", "y0", "up"]),
        }
    }

    /// Gives a machine another address, as a network does to a laptop that moves.
    pub fn move_machine(&self, machine: usize) {
        let name = self.machine(machine);
        must(&["-n", &name, "addr", "del", &address(machine), "dev", "eth0"]);
        must(&["-n", &name, "addr", "add", &address(machine + 100), "dev", "eth0"]);
    }

    /// A command in a machine.
    pub fn command(&self, machine: usize, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.machine(machine), program]);
        command
    }

    /// A connection to a port of a machine's own loopback.
    pub fn connect(&self, machine: usize, port: u16) -> io::Result<UnixStream> {
        let mut stream = UnixStream::connect(self.door(machine))?;
        stream.write_all(&port.to_be_bytes())?;
        Ok(stream)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for helper in &mut self.helpers {
            let _ = helper.kill();
            let _ = helper.wait();
        }
        for suffix in ["sw", "wire"]
            .map(str::to_owned)
            .into_iter()
            .chain((1..=MACHINES).map(|n| n.to_string()))
        {
            let _ = ip(&["netns", "del", &self.namespace(&suffix)]);
        }
    }
}

fn address(machine: usize) -> String {
    format!("10.210.0.{machine}/24")
}

fn ip(arguments: &[&str]) -> Result<(), String> {
    let output = Command::new("ip").args(arguments).output().map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim()))
}

fn must(arguments: &[&str]) {
    ip(arguments).unwrap();
}

const fn is_left(machine: usize) -> bool {
    machine <= LEFT
}

/// Plays the role this process was started for, if for one, until it is ended.
pub fn play_role() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let socket = std::env::var(SOCKET).unwrap();
    match role.as_str() {
        "door" => door(Path::new(&socket)),
        "traveller" => traveller(socket.parse().unwrap()),
        _ => relay(Path::new(&socket)),
    }
}

/// Lets connections from outside of the namespace in: two bytes name the port. Sends back what
/// other machines send to its port for that.
fn door(socket: &Path) {
    thread::spawn(echo);
    let listener = UnixListener::bind(socket).unwrap();
    for outer in listener.incoming() {
        let mut outer = outer.unwrap();
        thread::spawn(move || -> io::Result<()> {
            let mut port = [0; 2];
            outer.read_exact(&mut port)?;
            let inner = TcpStream::connect(("127.0.0.1", u16::from_be_bytes(port)))?;
            let (mut asked, mut asker) = (outer.try_clone()?, inner.try_clone()?);
            thread::spawn(move || io::copy(&mut asked, &mut asker));
            let (mut inner, mut outer) = (inner, outer);
            io::copy(&mut inner, &mut outer)?;
            outer.shutdown(std::net::Shutdown::Both)
        });
    }
}

fn echo() {
    let socket = UdpSocket::bind(("0.0.0.0", ECHO_PORT)).unwrap();
    let mut buffer = [0; 64];
    loop {
        if let Ok((bytes, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..bytes], from);
        }
    }
}

/// Sends datagrams with the time of their sending to another machine, one each millisecond, and
/// looks at what comes back.
fn traveller(to: IpAddr) {
    let socket = UdpSocket::bind(("0.0.0.0", 0)).unwrap();
    socket.connect((to, ECHO_PORT)).unwrap();
    let begun = Instant::now();
    let mut buffer = [0; 8];
    // One byte, until the other machine listens.
    socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    while socket.send(b"?").and_then(|_| socket.recv(&mut buffer)).is_err() {
        assert!(begun.elapsed() < ECHOES_WITHIN, "nothing comes back");
    }
    let sending = socket.try_clone().unwrap();
    thread::spawn(move || {
        for _ in 0..TRIPS {
            let _ = sending.send(&(begun.elapsed().as_micros() as u64).to_be_bytes());
            thread::sleep(Duration::from_millis(1));
        }
    });
    socket.set_read_timeout(Some(BACK_WITHIN)).unwrap();
    let mut trips = Vec::new();
    while let Ok(bytes) = socket.recv(&mut buffer) {
        if bytes == buffer.len() {
            trips.push(begun.elapsed().as_micros() as u64 - u64::from_be_bytes(buffer));
        }
    }
    if let Some(shortest) = trips.iter().min() {
        println!("\n{ROUND_TRIPS}{shortest} {}", trips.len());
    }
}

/// Carries frames between the machines, which are the numbers of their networks. While there is a
/// file `cut`, none goes from the left to the right or back.
fn relay(cut: &Path) {
    let socket = UdpSocket::bind((WIRE_ADDRESS, VXLAN_PORT)).unwrap();
    let sending = socket.try_clone().unwrap();
    let (sender, frames) = mpsc::channel::<(Instant, Vec<u8>)>();
    thread::spawn(move || {
        for (due, frame) in frames {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            let _ = sending.send_to(&frame, ("10.211.0.1", VXLAN_PORT));
        }
    });
    let (mut buffer, mut state) = ([0; 2_048], 0x7a11_5eed_u64);
    // At which machine an Ethernet address is.
    let mut places = BTreeMap::<[u8; 6], usize>::new();
    loop {
        let Ok(bytes) = socket.recv(&mut buffer) else { continue };
        let Some(frame) = buffer.get(ETHERNET..bytes) else { continue };
        let (Some(to), Some(by)) = (frame.first_chunk(), frame.get(6..12)) else { continue };
        let from = usize::from(buffer[NETWORK]);
        let to = places.get(to).copied();
        places.extend(by.try_into().map(|by: [u8; 6]| (by, from)));
        without_checksum(&mut buffer[..bytes]);
        let is_cut = cut.exists();
        for machine in (1..=MACHINES).filter(|machine| to.is_none_or(|to| to == *machine)) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let is_lost = state % 1_000 < WIRE_LOSS_PER_MILLE;
            let is_beyond = is_cut && is_left(machine) != is_left(from);
            if machine == from || is_lost || is_beyond {
                continue;
            }
            buffer[NETWORK] = machine as u8;
            let _ = sender.send((Instant::now() + WIRE_DELAY, buffer[..bytes].to_vec()));
        }
    }
}

/// Says of a UDP packet in a frame that it has no checksum: machines on one kernel leave it to a
/// network card that is not there.
fn without_checksum(encapsulated: &mut [u8]) {
    const IP: usize = ETHERNET + 14;
    const UDP: u8 = 17;
    let is_udp = encapsulated.get(ETHERNET + 12..IP) == Some(&[8, 0])
        && encapsulated.get(IP + 9) == Some(&UDP);
    if is_udp {
        let header = IP + 4 * usize::from(encapsulated[IP] & 15);
        if let Some(checksum) = encapsulated.get_mut(header + 6..header + 8) {
            checksum.fill(0);
        }
    }
}

/// Lines that a process prints, read for as long as it lives; the last ones are kept.
pub fn lines_of(pipe: impl io::Read + Send + 'static) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    receiver
}

/// The last lines of a text, for a report.
pub fn tail(text: &str, lines: usize) -> String {
    let mut last = VecDeque::new();
    for line in text.lines() {
        last.push_back(line);
        if last.len() > lines {
            last.pop_front();
        }
    }
    last.into_iter().collect::<Vec<_>>().join("\n")
}
