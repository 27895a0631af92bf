//! Reading and writing of whole files.

use std::fs::{File, Permissions};
use std::io::{self, Read, Write};
use std::path::Path;
use tempfile::NamedTempFile;

/// Requires a regular file: opening a pipe would block until another program opens it too, and a device may have no end.
pub(crate) fn check_regular(path: &Path) -> io::Result<()> {
    if path.metadata()?.is_file() {
        return Ok(());
    }
    Err(io::Error::other("expected a file, found a folder, pipe or device"))
}

/// Opens a regular file for reading.
///
/// # Errors
/// If `path` is a folder, pipe or device, or the file cannot be opened.
pub fn open_file(path: &Path) -> io::Result<File> {
    check_regular(path)?;
    File::open(path)
}

/// Reads all bytes of a regular file, of which there may be at most `most`.
///
/// # Errors
/// In the cases of [`open_file`], or if the file is longer or cannot be read.
pub fn read_file(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let file = open_file(path)?;
    let too_long = |found| Err(io::Error::other(format!("expected at most {most} bytes, found {found}")));
    let length = file.metadata()?.len();
    if length > most {
        return too_long(length);
    }
    let mut bytes = Vec::new();
    // The file may grow meanwhile, and those that the system makes up have no length.
    match file.take(most + 1).read_to_end(&mut bytes)? as u64 {
        found if found > most => too_long(found),
        _ => Ok(bytes),
    }
}

/// Writes a file atomically: the data goes to a temporary file in the same folder and to the disk, and the file is then
/// renamed to `path`. A file that exists keeps its permissions, and where `path` is a link to a file, that file is
/// replaced and not the link. If `path` exists and is no regular file, such as a terminal, the data is written to it
/// directly.
///
/// # Errors
/// If the file cannot be written, for instance because its folder does not exist.
pub fn write_whole(path: &Path, data: &[u8]) -> io::Result<()> {
    let there = std::fs::metadata(path).ok();
    if there.as_ref().is_some_and(|there| !there.is_file()) {
        return std::fs::write(path, data);
    }
    let target = if there.is_some() { std::fs::canonicalize(path)? } else { path.to_owned() };
    // The parent of a bare file name is an empty path.
    let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let file = beside().tempfile_in(folder).map_err(of_system)?;
    write_as(file, data, there.map(|there| there.permissions()), &target)
}

/// Writes data to a temporary file, which then becomes `target`.
fn write_as(mut file: NamedTempFile, data: &[u8], rights: Option<Permissions>, target: &Path) -> io::Result<()> {
    file.write_all(data).map_err(of_system)?;
    if let Some(rights) = rights {
        file.as_file().set_permissions(rights)?;
    }
    // Otherwise a crash of the machine could leave an empty file under the new name.
    file.as_file().sync_all()?;
    file.persist(target)?;
    Ok(())
}

/// Checks that files can be created in a folder, by creating one and removing it.
///
/// # Errors
/// If none can.
pub fn check_folder(folder: &Path) -> io::Result<()> {
    tempfile::tempfile_in(folder).map(drop).map_err(of_system)
}

/// Returns an error of `tempfile` without the name of the temporary file, which the user has never heard of.
fn of_system(error: io::Error) -> io::Error {
    match error.to_string().rsplit_once(" at path ") {
        Some((said, _)) => io::Error::new(error.kind(), said.to_owned()),
        None => error,
    }
}

/// Returns a builder of temporary files with a new file's usual permissions.
fn beside() -> tempfile::Builder<'static, 'static> {
    #[cfg_attr(not(unix), expect(unused_mut, reason = "only Unix has such permissions"))]
    let mut beside = tempfile::Builder::new();
    // By default, a temporary file is readable by its owner only.
    #[cfg(unix)]
    beside.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    beside
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_do_not_name_the_temporary_file() {
        let folder = tempfile::tempdir().expect("there is room");
        let absent = folder.path().join("absent");
        let errors = [check_folder(&absent), write_whole(&absent.join("file"), b"text")];
        for error in errors.map(|result| result.expect_err("there is no such folder")) {
            assert!(error.kind() == io::ErrorKind::NotFound && !error.to_string().contains("tmp"), "{error}");
        }
        check_folder(folder.path()).expect("there is one");
        #[cfg(target_os = "linux")]
        {
            let full = File::options().write(true).open("/dev/full").expect("Linux has it");
            let unnamed = tempfile::TempPath::try_from_path(folder.path().join("tmp")).expect("it is absolute");
            let full = NamedTempFile::from_parts(full, unnamed);
            let error = write_as(full, b"text", None, &absent).expect_err("there is no room");
            assert!(error.to_string().starts_with("No space left") && !error.to_string().contains("tmp"), "{error}");
        }
        let left = std::fs::read_dir(folder.path()).expect("it is there").count();
        assert_eq!(left, 0, "the file that was tried is still there");
    }

    #[test]
    fn files_are_written_whole_and_devices_stay_devices() {
        let folder = tempfile::tempdir().expect("there is room");
        let path = folder.path().join("file");
        for text in ["first", "second"] {
            write_whole(&path, text.as_bytes()).expect("it can be written");
            assert_eq!(std::fs::read_to_string(&path).expect("it is there"), text);
        }
        assert_eq!(std::fs::read_dir(folder.path()).expect("it is there").count(), 1, "something is left");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = std::fs::metadata(&path).expect("it is there").permissions().mode();
            std::fs::write(folder.path().join("plain"), "").expect("it can be written");
            let plain = std::fs::metadata(folder.path().join("plain")).expect("it is there").permissions().mode();
            assert_eq!(mode, plain, "not the rights of any new file");
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).expect("it is ours");
            let link = folder.path().join("link");
            std::os::unix::fs::symlink("file", &link).expect("it can be made");
            write_whole(&link, b"third").expect("it can be written");
            assert!(std::fs::symlink_metadata(&link).expect("it is there").is_symlink(), "the link was replaced");
            assert_eq!(std::fs::read_to_string(&path).expect("it is there"), "third", "the link's target is old");
            let kept = std::fs::metadata(&path).expect("it is there").permissions().mode();
            assert_eq!(kept & 0o777, 0o640, "the rights of the file are lost");
            write_whole(Path::new("/dev/null"), b"gone").expect("it takes everything");
            assert!(!std::fs::metadata("/dev/null").expect("it is there").is_file());
        }
        assert!(write_whole(&folder.path().join("none/file"), b"").is_err(), "there is no such folder");
        assert!(!folder.path().join("none").exists(), "nobody asked for a folder");
    }

    #[test]
    fn a_file_that_is_too_long_is_not_read() {
        let folder = tempfile::tempdir().expect("there is room");
        let path = folder.path().join("file");
        std::fs::write(&path, "text").expect("it can be written");
        assert_eq!(read_file(&path, 4).expect("it is short enough"), b"text");
        let error = read_file(&path, 3).expect_err("it is too long").to_string();
        assert_eq!(error, "expected at most 3 bytes, found 4");
        #[cfg(target_os = "linux")]
        {
            let error = read_file(Path::new("/proc/self/maps"), 3).expect_err("it is too long").to_string();
            assert_eq!(error, "expected at most 3 bytes, found 4", "its length is 0 until it is read");
        }
    }

    #[test]
    #[cfg(unix)]
    fn only_regular_files_are_read() {
        let folder = tempfile::tempdir().expect("there is room");
        let pipe = folder.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status().expect("there is mkfifo");
        assert!(made.success(), "no pipe was made");
        for path in [&pipe, folder.path(), Path::new("/dev/zero")] {
            for error in
                [open_file(path).map(drop).expect_err("no file"), read_file(path, 9).map(drop).expect_err("no file")]
            {
                assert_eq!(error.to_string(), "expected a file, found a folder, pipe or device", "{}", path.display());
            }
        }
        assert_eq!(read_file(&folder.path().join("none"), 9).expect_err("none").kind(), io::ErrorKind::NotFound);
    }
}
