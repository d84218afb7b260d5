//! Fetching what no guest has asked for yet: first, as fast as it goes, in the order in which earlier boots read; then the
//! rest at a limited rate. And looking after images: telling others that they are here, verifying them again, making room.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::cache::ImageCache;
use super::lazy::LazyImage;
use super::order;

/// Threads that fetch ahead of a booting guest.
const AHEAD: usize = 4;
/// How long no guest may have waited for a chunk before others are fetched.
const CALM: Duration = Duration::from_secs(1);
/// Between two rounds of looking after.
const ROUND: Duration = Duration::from_secs(2);
/// Chunks that are verified again in a round: 8 MiB a second.
const SCRUBBED: usize = 32;
/// Rounds between two looks at the cache's size.
const EVICTION: u64 = 30;

/// Fills an image for as long as it is in use.
pub(super) fn image(cache: &ImageCache, image: &Arc<LazyImage>) {
    let (fetcher, weak) = (Arc::clone(&cache.inner.fetcher), Arc::downgrade(image));
    let digest = image.digest.clone();
    let filled = std::thread::Builder::new().name("image-fill".to_owned()).spawn(move || {
        // Who else has it matters from the first chunk on.
        if let Err(error) = fetcher.announce(&digest) {
            tracing::info!(%digest, %error, "other hosts do not know of an image here yet");
        }
        let order = fetcher.order(&digest).unwrap_or_default();
        ahead(&weak, order::parse(&order));
        let rate = fetcher.sources().map_or(1 << 20, |sources| sources.background_rate.max(1));
        rest(&weak, rate);
    });
    if let Err(error) = filled {
        tracing::error!(%error, "an image is only fetched as it is read");
    }
}

fn ahead(image: &Weak<LazyImage>, order: Vec<u32>) {
    let queue = Mutex::new(order.into_iter());
    std::thread::scope(|scope| {
        for _ in 0..AHEAD {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
                    let (Some(index), Some(image)) = (next, image.upgrade()) else { return };
                    if index < image.manifest.chunk_count()
                        && let Err(error) = image.ensure(index)
                    {
                        tracing::info!(index, %error, "a chunk cannot be fetched ahead");
                    }
                }
            });
        }
    });
}

fn rest(image: &Weak<LazyImage>, rate: u64) {
    let chunks: Vec<u32> = match image.upgrade() {
        Some(image) => image.manifest.chunks.iter().map(|(index, _)| *index).collect(),
        None => return,
    };
    // What fails is tried again for as long as the image is in use.
    while image.upgrade().is_some_and(|image| !image.is_complete()) {
        pass(image, &chunks, rate);
    }
}

fn pass(image: &Weak<LazyImage>, chunks: &[u32], rate: u64) {
    for index in chunks.iter().copied() {
        let Some(image) = image.upgrade() else { return };
        // A guest that waits comes first: it would share the network with what nobody has asked for.
        if image.calm() < CALM {
            drop(image);
            std::thread::sleep(CALM / 4);
            continue;
        }
        let began = Instant::now();
        // What is here is verified when it is read; that is soon enough.
        if image.is_here(index) {
            continue;
        }
        if let Err(error) = image.ensure(index) {
            tracing::info!(index, %error, "a chunk cannot be fetched in the background");
            drop(image);
            std::thread::sleep(ROUND);
            continue;
        }
        let pause = Duration::from_secs_f64(image.manifest.place(index).1 as f64 / rate as f64);
        drop(image);
        std::thread::sleep(pause.saturating_sub(began.elapsed()));
    }
}

/// Looks after all images in use, for ever.
pub(super) fn start(cache: &ImageCache) {
    let cache = cache.clone();
    let tended = std::thread::Builder::new().name("image-care".to_owned()).spawn(move || {
        let mut scrubbed = 0;
        for round in 0u64.. {
            std::thread::sleep(ROUND);
            for image in cache.images() {
                tend(&cache, &image, &mut scrubbed);
            }
            if round % EVICTION == 0
                && let Ok(sources) = cache.inner.fetcher.sources()
            {
                cache.evict(sources.cache_bytes);
            }
        }
    });
    if let Err(error) = tended {
        tracing::error!(%error, "nobody looks after the images");
    }
}

fn tend(cache: &ImageCache, image: &LazyImage, scrubbed: &mut usize) {
    let fetcher = &cache.inner.fetcher;
    if let Err(error) = fetcher.announce(&image.digest) {
        tracing::debug!(%error, "an image cannot be announced");
    }
    cache.inner.touch(&image.digest);
    if let Some(order) = image.recorder.finished() {
        // The first to know is as good as any.
        let known = fetcher.order(&image.digest).is_ok_and(|known| !known.is_empty());
        match if known { Ok(()) } else { fetcher.publish_order(&image.digest, &order) } {
            Ok(()) => image.recorder.stop(),
            Err(error) => tracing::info!(%error, "the order of a boot's reads is not known to others"),
        }
    }
    let count = image.manifest.chunks.len().max(1);
    for (index, _) in image.manifest.chunks.iter().cycle().skip(*scrubbed % count).take(SCRUBBED.min(count)) {
        if let Err(error) = image.scrub(*index) {
            tracing::warn!(index, %error, "a damaged chunk cannot be mended yet");
        }
    }
    *scrubbed = scrubbed.wrapping_add(SCRUBBED);
}
