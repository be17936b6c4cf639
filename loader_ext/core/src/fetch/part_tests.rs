use super::*;

const BYTES: u64 = CHUNK_BYTES + 10;

fn body() -> Vec<u8> {
    (0..BYTES).map(|index| (index % 251) as u8).collect()
}

fn described() -> Description {
    let (path, etag) = ("/bucket/weights".to_owned(), Some("one".to_owned()));
    Description { path, file_bytes: BYTES, etag, modified: None }
}

fn expected() -> FileDigest {
    let chunks = body().chunks(CHUNK_BYTES as usize).map(xxh3_128).collect();
    FileDigest { name: "weights".to_owned(), size_bytes: BYTES, chunks }
}

fn folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights");
    (folder, path)
}

fn open(path: &Path) -> Part {
    Part::open(path, &described(), Some(&expected())).unwrap()
}

fn seal(part: &Part, chunk: usize) {
    let (begin, length) = part.subject().chunk(chunk);
    let mut writer = part.writer(chunk);
    for piece in body()[begin as usize..(begin + length) as usize].chunks(1 << 20) {
        assert_eq!(writer.push(piece), Ok(Outcome::Sealed));
    }
    assert_eq!(writer.finish(), Ok(Outcome::Sealed));
}

#[test]
fn chunks_in_any_order_make_the_file() {
    let (_folder, path) = folder();
    let part = open(&path);
    seal(&part, 1);
    assert!(part.has(1) && !part.has(0));
    assert_eq!(part.replace(0, &body()[..CHUNK_BYTES as usize]), Ok(Outcome::Sealed));
    let (digest, _) = part.finish(&path).unwrap();
    assert_eq!(digest, expected());
    assert_eq!(fs::read(&path).unwrap(), body());
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
}

#[test]
fn a_slower_stream_never_touches_what_a_faster_one_verified() {
    let (_folder, path) = folder();
    let part = open(&path);
    let mut slow = part.writer(0);
    assert_eq!(slow.push(&[0; 4096]), Ok(Outcome::Sealed), "wrong bytes, not verified yet");
    assert_eq!(part.replace(0, &body()[..CHUNK_BYTES as usize]), Ok(Outcome::Sealed));
    assert_eq!(slow.push(&[0; 4096]), Ok(Outcome::Late));
    assert_eq!(part.replace(0, &body()[..CHUNK_BYTES as usize]), Ok(Outcome::Late));
    seal(&part, 1);
    part.finish(&path).unwrap();
    assert_eq!(fs::read(&path).unwrap(), body());
}

#[test]
fn wrong_bytes_are_refused_and_leave_no_trace_in_the_map() {
    let (_folder, path) = folder();
    let part = open(&path);
    let mut writer = part.writer(1);
    writer.push(&[9; 10]).unwrap();
    assert!(matches!(writer.finish().unwrap_err().kind, Kind::ChunkMismatch { chunk: 1, .. }));
    let whole = vec![9; CHUNK_BYTES as usize];
    assert!(matches!(part.replace(0, &whole).unwrap_err().kind, Kind::ChunkMismatch { .. }));
    assert!(!part.has(0) && !part.has(1));
}

#[test]
fn what_stays_is_verified_before_it_counts() {
    let (_folder, path) = folder();
    let part = open(&path);
    seal(&part, 0);
    seal(&part, 1);
    drop(part);
    let mut kept = open(&path);
    assert_eq!(kept.verify_resumed(&mut |_, _| Ok(())).unwrap().0, BYTES);
    kept.file.write_all_at(b"?", 3).unwrap();
    assert_eq!(kept.verify_resumed(&mut |_, _| Ok(())).unwrap().0, 10);
    assert!(!kept.has(0) && kept.has(1));
    seal(&kept, 0);
}

#[test]
fn what_cannot_be_read_again_is_brought_again() {
    let (_folder, path) = folder();
    let part = open(&path);
    seal(&part, 0);
    seal(&part, 1);
    drop(part);
    let mut kept = open(&path);
    // Nothing is mapped at the begin of any process: reading its memory there is an EIO.
    let bad = File::open("/proc/self/mem").unwrap();
    let good = std::mem::replace(&mut kept.file, bad);
    assert_eq!(kept.verify_resumed(&mut |_, _| Ok(())).unwrap().0, 0);
    kept.file = good;
    assert!(!kept.has(0) && !kept.has(1));
    seal(&kept, 0);
    seal(&kept, 1);
    assert_eq!(kept.finish(&path).unwrap().0, expected());
}

#[test]
fn a_name_that_is_taken_meanwhile_is_not_replaced() {
    let (_folder, path) = folder();
    let part = open(&path);
    seal(&part, 0);
    seal(&part, 1);
    fs::write(&path, "precious").unwrap();
    assert_eq!(part.finish(&path).unwrap_err().kind, Kind::DestinationExists);
    assert_eq!(fs::read(&path).unwrap(), b"precious");
    fs::remove_file(&path).unwrap();
    let again = open(&path);
    assert!(again.has(0) && again.has(1), "and nothing is lost");
    again.finish(&path).unwrap();
    assert_eq!(fs::read(&path).unwrap(), body());
}

#[test]
fn what_could_not_be_synced_is_not_there() {
    let (_folder, path) = folder();
    let mut part = open(&path);
    seal(&part, 0);
    seal(&part, 1);
    part.file = File::open("/proc/self/mem").unwrap(); // nobody can sync that
    let reader = Arrival::watch(&path).unwrap();
    let error = part.finish(&path).unwrap_err();
    assert!(matches!(error.kind, Kind::Io { action: "fsync", .. }), "{error}");
    assert!(!reader.has(0) && !reader.has(1), "what the page cache shows may not be on the disk");
    assert!(!path.exists());
    assert_eq!(open(&path).verify_resumed(&mut |_, _| Ok(())).unwrap().0, 0);
}

#[test]
fn what_a_loss_of_power_left_is_read_before_anybody_sees_it() {
    let (_folder, path) = folder();
    let part = open(&path);
    seal(&part, 0);
    seal(&part, 1);
    // The bits reached the disk, the bytes of the second chunk did not, and the machine began anew.
    part.file.write_all_at(&[0; 10], CHUNK_BYTES).unwrap();
    drop(part);
    let map = fs::OpenOptions::new().write(true).open(map_path(&path)).unwrap();
    map.write_all_at(&[0xA5; 16], 72).unwrap();

    let mut resumed = open(&path);
    let reader = Arrival::watch(&path).unwrap();
    assert!(!reader.has(0) && !reader.has(1));
    let mut seen = 0;
    let kept = resumed.verify_resumed(&mut |_, _| {
        seen += 1;
        assert!(!reader.has(1));
        Ok(())
    });
    assert_eq!(kept.unwrap().0, CHUNK_BYTES);
    assert!(seen > 0);
    assert!(reader.has(0) && !reader.has(1));
    assert!(resumed.has(0) && !resumed.has(1));
    seal(&resumed, 1);
    assert!(reader.has(1));
    resumed.finish(&path).unwrap();
    assert_eq!(fs::read(&path).unwrap(), body());
}

#[test]
fn another_object_begins_anew() {
    let (_folder, path) = folder();
    let open = |object: &Description| Part::open(&path, object, None).unwrap();
    let tag = Description { etag: Some("two".to_owned()), ..described() };
    // A tag says nothing of what is somewhere else.
    let place = Description { path: "/bucket/others".to_owned(), ..described() };
    let length = Description { file_bytes: BYTES - 1, ..described() };
    for other in [tag, place, length] {
        seal(&open(&described()), 0);
        assert!(open(&described()).has(0), "the same goes on");
        assert!(!open(&other).has(0));
    }
    let nameless = Description { etag: None, ..described() };
    open(&nameless).writer(1).finish().unwrap();
    assert!(!open(&nameless).has(1), "never known again");
}

#[test]
fn a_digest_of_another_length_is_refused() {
    let (_folder, path) = folder();
    let short = FileDigest { chunks: vec![1], ..expected() };
    let refused = Part::open(&path, &described(), Some(&short)).unwrap_err();
    assert!(matches!(refused.kind, Kind::DigestInvalid { .. }));
}
