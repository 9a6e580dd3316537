//! What the cargo features of the state manager add: `cargo test -p crashtest-targets --all-features`.
#![cfg(all(feature = "compression", feature = "encryption", feature = "remote"))]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::Path;

use crashtest_targets::managed::codec::Codec;
use crashtest_targets::managed::event::Event;
use crashtest_targets::managed::remote::ObjectRemote;
use crashtest_targets::managed::{ManagerError, Options, StateManager, store};

fn options(key: &age::x25519::Identity) -> Options {
    let codec = Codec { compress: true, key: Some(key.clone()) };
    Options { first_balance: 100_000, codec, ..Options::default() }
}

fn names(directory: &Path) -> Vec<String> {
    let names = fs::read_dir(directory).unwrap();
    names.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn a_state_that_nobody_else_may_read_is_saved_backed_up_and_comes_back() {
    let key = age::x25519::Identity::generate();
    let directory = tempfile::tempdir().unwrap();
    let manager = StateManager::open(directory.path(), options(&key)).unwrap();
    manager.realise(500, "won").unwrap();
    drop(manager);
    let file = directory.path().join("state.json");
    let stored = fs::read(&file).unwrap();
    assert!(
        stored.starts_with(b"age-encryption.org/v1") && !stored.windows(5).any(|w| w == b"peak_")
    );
    // Damaged, it comes back from the backup, which is encrypted too.
    fs::write(&file, &stored[..stored.len() - 1]).unwrap();
    let manager = StateManager::open(directory.path(), options(&key)).unwrap();
    assert!(matches!(&manager.events()[0], Event::FellBack { .. }));
    assert_eq!(manager.state().current_balance, 100_500);
    drop(manager);
    // With another key nothing is made up.
    let other = options(&age::x25519::Identity::generate());
    let refused = StateManager::open(directory.path(), other);
    assert!(matches!(refused, Err(ManagerError::Store(store::StoreError::Lost(_)))));
}

#[test]
fn backups_are_copied_to_another_directory() {
    let (directory, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let remote = Box::new(ObjectRemote::directory(&elsewhere.path().join("copies")).unwrap());
    let options = Options { remote: Some(remote), ..Options::default() };
    let manager = StateManager::open(directory.path(), options).unwrap();
    manager.back_up("wanted").unwrap();
    let copies = names(&elsewhere.path().join("copies"));
    assert_eq!(copies, names(&directory.path().join("backups")));
}

#[test]
fn a_bucket_that_is_down_is_told_and_gets_its_copy_when_it_is_back() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let directory = tempfile::tempdir().unwrap();
    let remote =
        ObjectRemote::bucket(&format!("http://{address}"), "bots", Some(("key", "secret")))
            .unwrap();
    let options = Options { remote: Some(Box::new(remote)), ..Options::default() };
    let manager = StateManager::open(directory.path(), options).unwrap();
    manager.back_up("down").unwrap();
    assert!(manager.events().iter().any(|event| matches!(event, Event::CopyFailed { .. })));
    let listener = TcpListener::bind(address).unwrap();
    let server = std::thread::spawn(move || [put(&listener), put(&listener)]);
    manager.back_up("up").unwrap();
    let copied = manager.events().into_iter().filter(|event| matches!(event, Event::Copied(_)));
    assert_eq!(copied.count(), 2);
    for (path, body) in server.join().unwrap() {
        let name = path.strip_prefix("/bots/").unwrap();
        assert_eq!(fs::read(directory.path().join("backups").join(name)).unwrap(), body);
    }
}

/// Answers one PUT as S3 does; its path and its body.
fn put(listener: &TcpListener) -> (String, Vec<u8>) {
    let (stream, _) = listener.accept().unwrap();
    let mut reader = BufReader::new(stream);
    let (mut line, mut length) = (String::new(), 0);
    reader.read_line(&mut line).unwrap();
    let path = line.split(' ').nth(1).unwrap().to_owned();
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).unwrap();
        if header == "\r\n" {
            break;
        }
        if let Some((name, value)) = header.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let answer = "HTTP/1.1 200 OK\r\nETag: \"1\"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    reader.get_mut().write_all(answer.as_bytes()).unwrap();
    (path, body)
}
