//! Passwords as `crypt(3)` writes them (SHA-512): what is in a seed, in its image and in the guest's user-data tells
//! nobody the word itself.

use sha_crypt::{Params, sha512_crypt};

use super::config::check_password;
use crate::base::plan::random;
use crate::base::{Context as _, Result};

/// The digits of `crypt(3)`, least first.
const DIGITS: &[u8; 64] = b"./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// What every `crypt(3)` takes when nothing is said.
const ROUNDS: u32 = 5000;

/// The password in the form in which it may be written down. One that has it already stays as it is.
///
/// # Errors
/// [`Usage`](crate::base::Kind::Usage) when it is empty or has control characters; when the system gives no random bytes.
pub fn hashed(password: &str) -> Result<String> {
    check_password(password)?;
    if is_hashed(password) {
        return Ok(password.to_owned());
    }
    with_salt(password, &random::<16>()?.map(|byte| DIGITS[usize::from(byte & 63)]))
}

/// Whether it is what `crypt(5)` writes: `$id$salt$hash`.
#[must_use]
pub fn is_hashed(password: &str) -> bool {
    password.starts_with('$') && password.matches('$').count() >= 3
}

fn with_salt(password: &str, salt: &[u8]) -> Result<String> {
    let rounds = Params::new(ROUNDS).context(|| "hashing the password".to_owned())?;
    let hash = sha512_crypt(password.as_bytes(), salt, rounds);
    let mut text = format!("$6${}$", String::from_utf8_lossy(salt));
    let mut digits = |mut bits: u32, count: usize| {
        for _ in 0..count {
            text.push(char::from(DIGITS[(bits & 63) as usize]));
            bits >>= 6;
        }
    };
    // Every third byte begins with another one of the three that stand together.
    for at in 0..21 {
        let mut three = [hash[at], hash[at + 21], hash[at + 42]];
        three.rotate_left(at % 3);
        digits(u32::from_be_bytes([0, three[0], three[1], three[2]]), 4);
    }
    digits(u32::from(hash[63]), 2);
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Kind;

    /// As `openssl passwd -6` writes them; the first is of the specification.
    #[test]
    fn passwords_are_hashed_as_everywhere() {
        for (salt, password, hash) in [
            (
                "saltstring",
                "Hello world!",
                "svn8UoSVapNtMuq1ukKS4tPQd8iKwSMHWjl/O817G3uBnIFNjnQJuesI68u4OTLiBFdcbYEdFCoEOfaS35inz1",
            ),
            ("AB", "pä ss", "ZoRJhhv5Qy8sFHkFGvYyzcya2sYzQ7UFsbm0O9vt2bT1uBdM3D9vvC.v7mSubaiQ3FcefX/4ToaEUpIx3m.TU0"),
        ] {
            assert_eq!(with_salt(password, salt.as_bytes()).unwrap(), format!("$6${salt}${hash}"));
        }
        let [one, two] = ["secret", "secret"].map(|password| hashed(password).unwrap());
        assert!(one != two && is_hashed(&one) && one.len() == 3 + 16 + 1 + 86, "{one}");
        assert_eq!(hashed("$y$j9T$abc$def").unwrap(), "$y$j9T$abc$def");
        for wrong in ["", "a\nroot:x"] {
            assert_eq!(hashed(wrong).unwrap_err().kind(), Kind::Usage);
        }
        // To cloud-init this means another one, and hashed it does not.
        assert!(is_hashed(&hashed("1:30").unwrap()));
    }
}
