//! Pictures in a request: the file itself in a `data:` URL. Nothing is fetched for anybody.

use data_encoding::BASE64_NOPAD;
use serde_json::{Value, json};
use tirami_infer::image::{IMAGE_BYTES_MAX, Image, ImageError};

use crate::http::error::ApiError;

/// Bytes that four characters of a `data:` URL stand for.
const QUARTET_BYTES: usize = 3;

/// The picture of a part `{"type": "image_url", "image_url": {"url": …}}`.
pub(super) fn part(at: &str, part: &Value) -> Result<Image, ApiError> {
    let url = part.get("image_url");
    match url.and_then(|url| url.get("url").unwrap_or(url).as_str()) {
        Some(url) => read(&format!("{at}.image_url"), url),
        None => {
            let message = format!(
                "{at} must be {{\"type\": \"image_url\", \"image_url\": {{\"url\": \"data:…\"}}}}"
            );
            Err(ApiError::invalid(at, message))
        }
    }
}

/// What a message says, as another interface tells it piece by piece.
#[derive(Default)]
pub(in crate::http) struct Said {
    parts: Vec<Value>,
    /// Text after the last picture.
    text: Option<String>,
}

impl Said {
    pub(in crate::http) fn text(&mut self, text: &str) {
        self.text.get_or_insert_default().push_str(text);
    }

    pub(in crate::http) fn picture(&mut self, url: &str) {
        self.parts.extend(self.text.take().map(text_part));
        self.parts.push(json!({"type": "image_url", "image_url": {"url": url}}));
    }

    /// The content of the chat's message: a text, or parts where there are pictures; none where
    /// nothing was said.
    pub(in crate::http) fn content(mut self) -> Option<Value> {
        if self.parts.is_empty() {
            return self.text.map(Value::String);
        }
        self.parts.extend(self.text.map(text_part));
        Some(Value::Array(self.parts))
    }
}

fn text_part(text: String) -> Value {
    json!({"type": "text", "text": text})
}

/// Refuses what is no picture, by the name it has in the request.
pub(in crate::http) fn check(param: &str, url: &str) -> Result<(), ApiError> {
    read(param, url).map(drop)
}

fn read(param: &str, url: &str) -> Result<Image, ApiError> {
    let refused = |code, message: &str| {
        Err(ApiError::bad_request(code, format!("{param}: {message}")).param(param))
    };
    let Some(rest) = strip_prefix(url, "data:") else {
        let message = "a node fetches nothing from elsewhere; send the picture itself, as \
                       data:image/png;base64,…";
        return refused("image_not_fetched", message);
    };
    let Some((_, data)) = rest.split_once(";base64,") else {
        return refused("invalid_image", "it is no data:image/png;base64,… or image/jpeg");
    };
    let data = data.trim_end_matches('=');
    if data.len() / 4 * QUARTET_BYTES > IMAGE_BYTES_MAX {
        return refused("image_too_large", &ImageError::Bytes.to_string());
    }
    let Ok(bytes) = BASE64_NOPAD.decode(data.as_bytes()) else {
        return refused("invalid_image", "its data is not base64");
    };
    Image::open(bytes).or_else(|error| {
        let code = match error {
            ImageError::Bytes | ImageError::Pixels { .. } | ImageError::Sides { .. } => {
                "image_too_large"
            }
            ImageError::Format | ImageError::Damaged { .. } => "invalid_image",
        };
        refused(code, &error.to_string())
    })
}

/// The rest after a scheme, in whatever case it is written.
fn strip_prefix<'u>(url: &'u str, scheme: &str) -> Option<&'u str> {
    let (start, rest) = url.split_at_checked(scheme.len())?;
    start.eq_ignore_ascii_case(scheme).then_some(rest)
}
