//! Pictures: what is read depends on them and on nothing else.

use tirami_infer::engine::{Placed, is_image_token};
use tirami_infer::image::{Image, ImageError};
use tirami_infer::llama::Projector;

use super::*;

#[path = "../support/vision.rs"]
mod support;

use support::{PICTURE_TOKENS, lay_beside, png};

fn asked(seeds: &[u8]) -> Conversation {
    let content = "What is this? Say it in a few words.".to_owned();
    let image = |seed: &u8| Image::open(png(64, 48, *seed)).unwrap();
    let place = |(number, seed)| Placed { at: 7 * number, image: image(seed) };
    let images = seeds.iter().enumerate().map(place).collect();
    Conversation::from(vec![Message { images, ..Message::new("user", content) }])
}

fn start(engine: &LlamaEngine, conversation: &Conversation) -> Generation {
    let prompt = engine.prepare(conversation).unwrap();
    let sampling = Sampling { completion_max: 24, ..Sampling::default() };
    engine.start(prompt, sampling).unwrap()
}

fn read(mut generation: Generation) -> (Vec<u32>, u32) {
    let mut tokens = Vec::new();
    while let Some(piece) = generation.pieces.blocking_recv() {
        match piece {
            Piece::Delta { tokens: more, .. } => tokens.extend(more),
            Piece::End { .. } => return (tokens, generation.cached_tokens()),
            Piece::Failed { reason } => panic!("{reason}"),
        }
    }
    panic!("no end")
}

fn answer(engine: &LlamaEngine, conversation: &Conversation) -> (Vec<u32>, u32) {
    read(start(engine, conversation))
}

#[test]
fn an_answer_depends_on_the_picture_and_on_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let path = lay_beside(&model_path(), folder.path(), "seeing");
    let engine = LlamaEngine::load(&path, &LlamaOptions { sequences: 4, ..small() }).unwrap();
    let prompt = engine.prepare(&asked(&[1])).unwrap();
    let pictured = prompt.tokens.iter().filter(|token| is_image_token(**token)).count();
    assert_eq!(pictured, PICTURE_TOKENS as usize);
    assert_eq!(prompt.tokens.len() - pictured, engine.prepare(&asked(&[])).unwrap().tokens.len());
    let (one, cached) = answer(&engine, &asked(&[1]));
    assert!((cached as usize) < prompt.images[0].start + 1, "{cached}");
    let (other, cached) = answer(&engine, &asked(&[2]));
    assert!((cached as usize) < prompt.images[0].start + 1, "{cached}");
    let (none, _) = answer(&engine, &asked(&[]));
    assert!(one != other && one != none && other != none, "{one:?} {other:?} {none:?}");
    // The second time the picture is found in the cache.
    let (again, cached) = answer(&engine, &asked(&[1]));
    assert_eq!(again, one);
    assert!(cached as usize >= prompt.images[0].start + pictured, "{cached}");
    let (both, _) = answer(&engine, &asked(&[1, 2]));
    assert_ne!(both, answer(&engine, &asked(&[2, 1])).0);
    assert_eq!(both, answer(&engine, &asked(&[1, 2])).0);
    drop(engine);
    let fresh = LlamaEngine::load(&path, &LlamaOptions { sequences: 2, ..small() }).unwrap();
    assert_eq!(answer(&fresh, &asked(&[1, 2])).0, both);
    assert_eq!(answer(&fresh, &asked(&[1])).0, one);
}

#[test]
fn among_others_a_picture_gives_the_answer_it_gives_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = lay_beside(&model_path(), folder.path(), "seeing");
    let engine = LlamaEngine::load(&path, &LlamaOptions { sequences: 4, ..small() }).unwrap();
    let asks: Vec<_> = [&[1_u8][..], &[2], &[], &[3, 4], &[5]].map(asked).into();
    let alone: Vec<_> = asks.iter().map(|ask| answer(&engine, ask).0).collect();
    drop(engine);
    let fresh = LlamaEngine::load(&path, &LlamaOptions { sequences: 4, ..small() }).unwrap();
    let running: Vec<_> = asks.iter().map(|ask| start(&fresh, ask)).collect();
    // Who leaves before its picture is read leaves no trace.
    drop(start(&fresh, &asked(&[9; 8])));
    let together: Vec<_> = running.into_iter().map(|one| read(one).0).collect();
    assert_eq!(together, alone);
}

#[test]
fn pictures_that_do_not_fit_or_are_damaged_are_refused_before_anything_is_queued() {
    let folder = tempfile::tempdir().unwrap();
    let path = lay_beside(&model_path(), folder.path(), "seeing");
    let options = LlamaOptions { sequences: 1, context_tokens: Some(100), ..small() };
    let engine = LlamaEngine::load(&path, &options).unwrap();
    assert_eq!(engine.model().image_tokens_max, PICTURE_TOKENS);
    let error = engine.prepare(&asked(&[1, 2, 3, 4])).unwrap_err();
    assert!(matches!(error, PrepareError::ContextLength { .. }), "{error}");
    let mut bytes = png(64, 64, 1);
    bytes.truncate(bytes.len() - 40);
    let mut conversation = asked(&[1]);
    conversation.messages[0].images[0].image = Image::open(bytes).unwrap();
    let error = engine.prepare(&conversation).unwrap_err();
    assert!(matches!(error, PrepareError::Image { number: 1, .. }), "{error}");
    assert_eq!(Image::open(b"GIF89a".to_vec()).unwrap_err(), ImageError::Format);

    // Another projector is another model, and none is the model as it was.
    let none = LlamaOptions { projector: Projector::None, ..options };
    let blind = LlamaEngine::load(&path, &none).unwrap();
    let plain = LlamaEngine::load(&model_path(), &none).unwrap();
    assert_eq!(blind.model().digest, plain.model().digest);
    assert_ne!(engine.model().digest, plain.model().digest);
    assert_eq!(blind.prepare(&asked(&[1])).unwrap_err(), PrepareError::NoImages);
}
