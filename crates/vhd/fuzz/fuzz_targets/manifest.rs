//! Reading an image's manifest.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mayfly_model::Manifest;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(manifest) = Manifest::parse(text) {
        assert_eq!(manifest.to_text(), text);
        let _ = (manifest.data_bytes(), manifest.chunk(0), manifest.place(manifest.chunk_count()));
    }
});
