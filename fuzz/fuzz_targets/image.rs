//! Pictures of strangers: their headers, and their pixels.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tirami_infer::image::Image;

fuzz_target!(|data: &[u8]| {
    if let Ok(image) = Image::open(data.to_vec()) {
        let _ = image.pixels();
    }
});
