//! Writing a small ISO 9660 image with Joliet names (ECMA-119, and Microsoft's Joliet specification of 1995): one folder, a
//! handful of files. The same files always make the same bytes.

const SECTOR: usize = 2048;
/// Sectors before the volume descriptors.
const SYSTEM_AREA: usize = 16;
/// Path tables and folders have one sector each, which is enough for one folder with so many files.
const FILES_MAX: usize = 16;
/// No date: the format's own way of not saying one.
const NO_TIME: [u8; 17] =
    [b'0', b'0', b'0', b'0', b'0', b'0', b'0', b'0', b'0', b'0', b'0', b'0', b'0', b'0', b'0', b'0', 0];

/// Where things lie, in sectors.
const PRIMARY: usize = SYSTEM_AREA;
const JOLIET: usize = SYSTEM_AREA + 1;
const TERMINATOR: usize = SYSTEM_AREA + 2;
const TABLES: usize = SYSTEM_AREA + 3;
const FOLDERS: usize = TABLES + 4;
const FILES: usize = FOLDERS + 2;

/// Names of files, in one of the two ways.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Naming {
    /// Eight and three capitals and digits.
    Plain,
    /// UTF-16, as given.
    Joliet,
}

/// The image of a disk with this label and these files.
///
/// # Panics
/// If there are more than 16 files, which the caller decides and not its input.
pub fn iso_image(label: &str, files: &[(String, Vec<u8>)]) -> Vec<u8> {
    assert!(files.len() <= FILES_MAX, "a provisioning disk has a handful of files");
    let mut image = vec![0; FILES * SECTOR];
    let mut places = Vec::new();
    for (_, content) in files {
        places.push((image.len() / SECTOR, content.len()));
        image.extend_from_slice(content);
        image.resize(image.len().next_multiple_of(SECTOR), 0);
    }
    let sectors = image.len() / SECTOR;
    for (naming, descriptor, table, folder) in
        [(Naming::Plain, PRIMARY, TABLES, FOLDERS), (Naming::Joliet, JOLIET, TABLES + 2, FOLDERS + 1)]
    {
        put(&mut image, descriptor, &volume_descriptor(naming, label, sectors, table, folder));
        put(&mut image, table, &path_table(folder, u32::to_le_bytes, u16::to_le_bytes));
        put(&mut image, table + 1, &path_table(folder, u32::to_be_bytes, u16::to_be_bytes));
        put(&mut image, folder, &folder_of(naming, folder, files, &places));
    }
    put(&mut image, TERMINATOR, &[255, b'C', b'D', b'0', b'0', b'1', 1]);
    image
}

fn put(image: &mut [u8], sector: usize, bytes: &[u8]) {
    image[sector * SECTOR..sector * SECTOR + bytes.len()].copy_from_slice(bytes);
}

/// A number in both orders of bytes.
fn both32(value: usize) -> [u8; 8] {
    let value = value as u32;
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&value.to_le_bytes());
    bytes[4..].copy_from_slice(&value.to_be_bytes());
    bytes
}

fn both16(value: u16) -> [u8; 4] {
    let ([a, b], [c, d]) = (value.to_le_bytes(), value.to_be_bytes());
    [a, b, c, d]
}

/// A text that fills a field with blanks.
fn padded(naming: Naming, text: &str, bytes: usize) -> Vec<u8> {
    match naming {
        Naming::Plain => {
            let mut field = text.as_bytes()[..text.len().min(bytes)].to_vec();
            field.resize(bytes, b' ');
            field
        }
        Naming::Joliet => {
            let blanks = std::iter::repeat(u16::from(b' '));
            let mut field: Vec<u8> =
                text.encode_utf16().chain(blanks).take(bytes / 2).flat_map(u16::to_be_bytes).collect();
            field.resize(bytes, 0);
            field
        }
    }
}

/// ECMA-119 8.4 and 8.5.
fn volume_descriptor(naming: Naming, label: &str, sectors: usize, table: usize, folder: usize) -> Vec<u8> {
    let mut bytes = vec![if naming == Naming::Plain { 1 } else { 2 }];
    bytes.extend(b"CD001\x01\0");
    bytes.extend(padded(naming, "", 32));
    bytes.extend(padded(naming, label, 32));
    bytes.extend([0; 8]);
    bytes.extend(both32(sectors));
    // The escape sequence for UCS-2, level 3.
    let mut escapes = [0; 32];
    if naming == Naming::Joliet {
        escapes[..3].copy_from_slice(b"%/E");
    }
    bytes.extend(escapes);
    bytes.extend(both16(1));
    bytes.extend(both16(1));
    bytes.extend(both16(SECTOR as u16));
    bytes.extend(both32(10));
    bytes.extend((table as u32).to_le_bytes());
    bytes.extend([0; 4]);
    bytes.extend((table as u32 + 1).to_be_bytes());
    bytes.extend([0; 4]);
    bytes.extend(record(folder, SECTOR, true, &[0]));
    for length in [128, 128, 128, 128, 37, 37, 37] {
        bytes.extend(padded(naming, "", length));
    }
    for _ in 0..4 {
        bytes.extend(NO_TIME);
    }
    bytes.push(1);
    bytes
}

/// ECMA-119 9.4, for the one folder.
fn path_table(folder: usize, word: fn(u32) -> [u8; 4], half: fn(u16) -> [u8; 2]) -> Vec<u8> {
    let mut bytes = vec![1, 0];
    bytes.extend(word(folder as u32));
    bytes.extend(half(1));
    bytes.extend([0, 0]);
    bytes
}

/// ECMA-119 9.1.
fn record(sector: usize, length: usize, is_folder: bool, name: &[u8]) -> Vec<u8> {
    let padding = usize::from(name.len().is_multiple_of(2));
    let total = 33 + name.len() + padding;
    let mut bytes = vec![total as u8, 0];
    bytes.extend(both32(sector));
    bytes.extend(both32(length));
    // 1 January 2000.
    bytes.extend([100, 1, 1, 0, 0, 0, 0]);
    bytes.extend([if is_folder { 2 } else { 0 }, 0, 0]);
    bytes.extend(both16(1));
    bytes.push(name.len() as u8);
    bytes.extend(name);
    bytes.resize(total, 0);
    bytes
}

fn folder_of(naming: Naming, folder: usize, files: &[(String, Vec<u8>)], places: &[(usize, usize)]) -> Vec<u8> {
    let mut bytes = record(folder, SECTOR, true, &[0]);
    bytes.extend(record(folder, SECTOR, true, &[1]));
    let mut records: Vec<(Vec<u8>, Vec<u8>)> = files
        .iter()
        .enumerate()
        .zip(places)
        .map(|((number, (name, _)), (sector, length))| {
            let name = file_name(naming, name, number);
            (name.clone(), record(*sector, *length, false, &name))
        })
        .collect();
    // The format wants them in order.
    records.sort();
    bytes.extend(records.into_iter().flat_map(|(_, record)| record));
    bytes
}

/// A file's name. A reader that knows no Joliet sees a short one, which its number makes unique.
fn file_name(naming: Naming, name: &str, number: usize) -> Vec<u8> {
    match naming {
        Naming::Joliet => name.encode_utf16().flat_map(u16::to_be_bytes).collect(),
        Naming::Plain => {
            let (stem, extension) = name.rsplit_once('.').unwrap_or((name, ""));
            let short = |text: &str, most: usize| -> String {
                let letters = text.chars().filter(char::is_ascii_alphanumeric).take(most);
                letters.collect::<String>().to_ascii_uppercase()
            };
            format!("{}{number:X}.{};1", short(stem, 7), short(extension, 3)).into_bytes()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_where_readers_look() {
        let files = [("ovf-env.xml".to_owned(), b"<x/>".to_vec()), ("a.b".to_owned(), vec![7; 3000])];
        let image = iso_image("label", &files);
        assert_eq!(image.len() % SECTOR, 0);
        for (sector, kind) in [(16, 1), (17, 2), (18, 255)] {
            assert_eq!(&image[sector * SECTOR..sector * SECTOR + 6], &[kind, b'C', b'D', b'0', b'0', b'1']);
        }
        assert_eq!(image, iso_image("label", &files), "the same files, the same bytes");
        assert_eq!(volume_descriptor(Naming::Joliet, "x", 1, 2, 3).len(), 882, "up to the version of the structure");
    }

    #[test]
    fn other_readers_read_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.iso");
        let files = [("ovf-env.xml".to_owned(), b"<x/>\n".to_vec()), ("CustomData.bin".to_owned(), vec![7; 3000])];
        std::fs::write(&path, iso_image("provision", &files)).unwrap();
        // The kernel's own reader is tried by the guests of the end-to-end tests.
        let blkid = std::process::Command::new("/sbin/blkid").args(["-p", "-o", "export"]).arg(&path).output().unwrap();
        let text = String::from_utf8_lossy(&blkid.stdout).into_owned();
        assert!(text.contains("TYPE=iso9660") && text.contains("LABEL=provision"), "{text}");
    }
}
