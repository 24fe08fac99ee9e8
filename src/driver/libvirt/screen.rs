//! The screen: a picture of it, and where libvirt serves it.

use virt::connect::Connect;
use virt::domain::Domain;
use virt::stream::Stream;

use super::connection::doing;
use super::session::parsed;
use crate::base::{Error, Kind, Result};

/// More than any screen of ours needs.
const PICTURE_LIMIT: usize = 64 << 20;

/// A picture as PNG.
///
/// # Errors
/// [`Kind::Unsupported`] when libvirt makes another kind of picture; what it said.
pub(super) fn picture(connection: &Connect, domain: &Domain) -> Result<Vec<u8>> {
    let what = || "taking a picture of the screen";
    let stream = Stream::new(connection, 0).map_err(doing(what()))?;
    let kind = domain.screenshot(&stream, 0, 0).map_err(doing(what()))?;
    if kind != "image/png" {
        // It is not wanted: how that ends is all the same.
        let _ = stream.abort();
        return Err(Error::new(Kind::Unsupported, format!("libvirt makes pictures of the kind '{kind}', not PNG"))
            .hint("screenshots need libvirt 8.6 and QEMU 7.1"));
    }
    let mut picture = Vec::new();
    let mut piece = vec![0; 64 << 10];
    loop {
        let length = usize::try_from(stream.recv(&mut piece).map_err(doing(what()))?).unwrap_or(0);
        if length == 0 {
            break;
        }
        picture.extend_from_slice(&piece[..length]);
        if picture.len() > PICTURE_LIMIT {
            let _ = stream.abort();
            return Err(Error::failed("libvirt sends a picture without end"));
        }
    }
    stream.finish().map_err(doing(what()))?;
    Ok(picture)
}

/// Where the screen of a running domain is served, as viewers take it.
///
/// # Errors
/// [`Kind::Unsupported`] when it is not, or not on the loopback.
pub(super) fn served(domain: &Domain) -> Result<String> {
    address(&domain.xml_desc(0).map_err(doing("looking at the guest"))?)
}

fn address(document: &str) -> Result<String> {
    let read = parsed(document)?;
    let graphics = read.descendants().filter(|node| node.has_tag_name("graphics"));
    let port = |node: &roxmltree::Node<'_, '_>| node.attribute("port")?.parse::<u16>().ok();
    let served = graphics.filter_map(|node| Some((node.attribute("type")?, node.attribute("listen")?, port(&node)?)));
    let (kind, listen, port) = served.into_iter().next().ok_or_else(|| unserved("has no screen that is served"))?;
    if !matches!(listen, "127.0.0.1" | "::1" | "localhost") {
        return Err(unserved("serves its screen beyond the loopback, which is not virga's doing"));
    }
    Ok(format!("{kind}://127.0.0.1:{port}"))
}

fn unserved(how: &str) -> Error {
    Error::new(Kind::Unsupported, format!("the guest {how}")).hint("'virsh edit' shows its <graphics>")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_loopback_counts() {
        let with = |graphics: &str| address(&format!("<domain><devices>{graphics}</devices></domain>"));
        let good = "<graphics type='vnc' port='5901' autoport='yes' listen='127.0.0.1'/>";
        assert_eq!(with(good).unwrap(), "vnc://127.0.0.1:5901");
        for bad in [
            "",
            "<graphics type='vnc' port='-1' listen='127.0.0.1'/>",
            "<graphics type='vnc' port='5900' listen='0.0.0.0'/>",
            "<graphics type='vnc' socket='/x'/>",
        ] {
            assert_eq!(with(bad).unwrap_err().kind(), Kind::Unsupported, "{bad}");
        }
    }
}
