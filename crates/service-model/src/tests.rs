//! Files as people write them, and as they get them wrong.

use mayfly_model::{Endpoint, RoleKind, VmSize};

use crate::{PackageFiles, Source, check, parse_configuration, parse_definition, resolve_files};

const DEFINITION: &str = "\u{feff}<?xml version=\"1.0\" encoding=\"utf-8\"?>\r\n\
<!-- the shop -->\r\n\
<ServiceDefinition name=\"Shop\" upgradeDomainCount=\"3\" xmlns=\"http://schemas.microsoft.com/ServiceHosting/2008/10/ServiceDefinition\">\r\n\
  <LoadBalancerProbes>\r\n\
    <LoadBalancerProbe name=\"up\" protocol=\"http\" path=\"health\" intervalInSeconds=\"5\" timeoutInSeconds=\"11\"/>\r\n\
  </LoadBalancerProbes>\r\n\
  <VirtualMachineRole name=\"web\" vmsize=\"ExtraSmall\">\r\n\
    <ConfigurationSettings><Setting name=\"Colour\"/></ConfigurationSettings>\r\n\
    <Endpoints>\r\n\
      <InputEndpoint name=\"http\" protocol=\"tcp\" port=\"80\" localPort=\"8080\" loadBalancerProbe=\"up\"/>\r\n\
      <InternalEndpoint name=\"peers\" protocol=\"any\"/>\r\n\
      <InstanceInputEndpoint name=\"ssh\" protocol=\"tcp\" localPort=\"22\">\r\n\
        <AllocatePublicPortFrom><FixedPortRange max=\"2299\" min=\"2200\"/></AllocatePublicPortFrom>\r\n\
      </InstanceInputEndpoint>\r\n\
    </Endpoints>\r\n\
    <LocalResources><LocalStorage name=\"scratch\" sizeInMB=\"512\" cleanOnRoleRecycle=\"false\"/></LocalResources>\r\n\
  </VirtualMachineRole>\r\n\
  <WorkerRole name=\"Crunch\"><Startup><Task commandLine=\"a.cmd\" executionContext=\"elevated\"/></Startup>\r\n\
    <Runtime><EntryPoint><ProgramEntryPoint commandLine=\"b.exe\" setReadyOnProcessStart=\"true\"/></EntryPoint></Runtime></WorkerRole>\r\n\
</ServiceDefinition>\r\n";

const CONFIGURATION: &str = r#"<ServiceConfiguration serviceName="Shop" osFamily="1" xmlns="http://schemas.microsoft.com/ServiceHosting/2008/10/ServiceConfiguration">
  <Role name="web">
    <OsImage href="hello.vhd"/>
    <Instances count="2"/>
    <ConfigurationSettings>
      <Setting name="Colour" value="red"/>
      <Setting name="Mayfly.UserData" value="@setup.sh"/>
    </ConfigurationSettings>
  </Role>
  <Role name="Crunch"><Instances count="1"/></Role>
</ServiceConfiguration>"#;

fn source(name: &str, text: &str) -> Source {
    Source::new(name, text.as_bytes()).unwrap()
}

fn definition_error(from: &str, to: &str) -> String {
    let text = DEFINITION.replace(from, to);
    assert_ne!(text, DEFINITION, "nothing was replaced");
    parse_definition(&source("a.csdef", &text)).unwrap_err().to_string()
}

fn configuration_error(from: &str, to: &str) -> String {
    let text = CONFIGURATION.replace(from, to);
    assert_ne!(text, CONFIGURATION, "nothing was replaced");
    let definition = parse_definition(&source("a.csdef", DEFINITION)).unwrap();
    let source = source("a.cscfg", &text);
    parse_configuration(&source)
        .and_then(|configuration| check(&definition, &configuration, &source))
        .unwrap_err()
        .to_string()
}

#[test]
fn a_real_definition_is_read() {
    let definition = parse_definition(&source("a.csdef", DEFINITION)).unwrap();
    assert_eq!((definition.name.as_str(), definition.update_domain_count), ("Shop", 3));
    let web = &definition.roles[0];
    assert_eq!((web.size, &web.kind), (VmSize::ExtraSmall, &RoleKind::VirtualMachine));
    assert!(
        matches!(&web.endpoints[0], Endpoint::Input { port: 80, local_port: 8080, probe: Some(p), .. } if p == "up")
    );
    assert!(matches!(&web.endpoints[2], Endpoint::InstanceInput { public_ports, .. } if public_ports.min == 2200));
    let RoleKind::Worker(code) = &definition.roles[1].kind else { panic!("{:?}", definition.roles[1].kind) };
    assert_eq!((code.entry_point.as_deref(), code.startup.len()), (Some("b.exe"), 1));
}

#[test]
fn a_configuration_is_read_and_its_script_resolved() {
    let source = source("a.cscfg", CONFIGURATION);
    let mut configuration = parse_configuration(&source).unwrap();
    let definition = parse_definition(&self::source("a.csdef", DEFINITION)).unwrap();
    check(&definition, &configuration, &source).unwrap();
    let missing = resolve_files(&mut configuration.clone(), &PackageFiles::new(), &source).unwrap_err();
    assert_eq!((missing.0[0].line, missing.0[0].column), (7, 46), "{missing}");
    let files = PackageFiles::from([("setup.sh".to_owned(), "#!/bin/sh\n".to_owned())]);
    resolve_files(&mut configuration, &files, &source).unwrap();
    assert_eq!(configuration.roles[0].setting("Mayfly.UserData"), Some("#!/bin/sh\n"));
    assert_eq!(configuration.roles[0].image.as_ref().unwrap().as_str(), "hello");
}

#[test]
fn access_controls_are_read_in_their_order() {
    let text = |order: u32, acl: &str| {
        format!(
            "<ServiceConfiguration serviceName=\"Shop\" xmlns=\"{}\"><NetworkConfiguration><AccessControls>\
             <AccessControl name=\"a\"><Rule order=\"5\" action=\"permit\" remoteSubnet=\"10.0.0.0/8\"/>\
             <Rule order=\"{order}\" action=\"deny\" remoteSubnet=\"10.1.2.3\"/></AccessControl></AccessControls>\
             <EndpointAcls><EndpointAcl role=\"web\" endpoint=\"http\" accessControl=\"{acl}\"/></EndpointAcls>\
             </NetworkConfiguration></ServiceConfiguration>",
            crate::configuration::NAMESPACE
        )
    };
    let read = |text: &str| parse_configuration(&source("a.cscfg", text));
    for (order, first) in [(1, false), (9, true)] {
        let acls = read(&text(order, "a")).unwrap().endpoint_acls;
        assert_eq!((acls[0].role.as_str(), acls[0].rules.len(), acls[0].rules[0].permit), ("web", 2, first));
        let single = acls[0].rules.iter().find(|rule| !rule.permit).unwrap();
        assert_eq!(single.subnet().to_string(), "10.1.2.3/32");
    }
    let error = |text: &str| read(text).unwrap_err().to_string();
    let newer = read(&text(1, "a").replace("10.1.2.3", "2001:db8:1::/48")).unwrap();
    assert_eq!(newer.endpoint_acls[0].rules[0].subnet().to_string(), "2001:db8:1::/48");
    assert!(error(&text(1, "b")).contains("there is no access control `b`"));
    assert!(error(&text(1, "a").replace("/8", "/33")).contains("`10.0.0.0/33` is not a network"));
    assert!(error(&text(1, "a").replace("deny", "refuse")).contains("refuse"));
}

#[test]
fn errors_look_like_a_compilers() {
    let error = definition_error("port=\"80\"", "port=\"80x\"");
    assert!(error.contains("error: `80x` is not a whole number from 1 to 65535"), "{error}");
    assert!(error.contains("a.csdef:10:"), "{error}");
    assert!(error.contains("^^^ here"), "{error}");
}

#[test]
fn wrong_definitions_are_explained() {
    let rules = |role: &str, endpoint: &str, source: &str| {
        format!(
            "<NetworkTrafficRules><OnlyAllowTrafficTo><Destinations><RoleEndpoint roleName=\"{role}\" \
             endpointName=\"{endpoint}\"/></Destinations>{source}</OnlyAllowTrafficTo></NetworkTrafficRules>\
             </ServiceDefinition>"
        )
    };
    for (from, to, expected) in [
        ("</ServiceDefinition>", "", "not well-formed XML"),
        ("2008/10/ServiceDefinition", "2008/10/Nothing", "wrong namespace"),
        ("upgradeDomainCount=\"3\"", "upgradeDomainCount=\"21\"", "from 1 to 20"),
        ("vmsize=\"ExtraSmall\"", "vmsize=\"Tiny\"", "sizes are ExtraSmall, Small"),
        ("loadBalancerProbe=\"up\"", "loadBalancerProbe=\"down\"", "there is no probe `down`"),
        ("<Endpoints>", "<Endpoint/><Endpoints>", "unknown element <Endpoint>"),
        ("name=\"peers\"", "nmae=\"peers\"", "lacks the attribute `name`"),
        ("name=\"peers\"", "name=\"HTTP\"", "`HTTP` is taken already"),
        ("name=\"Crunch\"", "name=\"WEB\"", "`WEB` is taken already"),
        ("min=\"2200\"", "min=\"3200\"", "before it starts"),
        ("min=\"2200\"", "min=\"80\"", "overlap"),
        (
            "</ServiceDefinition>",
            &rules("web", "peers", "<WhenSource matches=\"AnyRule\"/>"),
            "does not say who may call",
        ),
        ("</ServiceDefinition>", &rules("web", "http", "<AllowAllTraffic/>"), "no internal endpoint `http`"),
        (
            "</ServiceDefinition>",
            &rules("web", "peers", "<WhenSource><FromRole roleName=\"x\"/></WhenSource>"),
            "no role `x`",
        ),
        ("path=\"health\"", "", "an http probe needs a `path`"),
        ("intervalInSeconds=\"5\"", "intervalInSeconds=\"4\"", "from 5 to"),
        ("<LocalResources>", "<Startup/><LocalResources>", "unknown element <Startup> in <VirtualMachineRole>"),
    ] {
        let error = definition_error(from, to);
        assert!(error.contains(expected), "expected {expected:?} in:\n{error}");
    }
}

#[test]
fn contradictions_are_explained() {
    for (from, to, expected) in [
        ("serviceName=\"Shop\"", "serviceName=\"Other\"", "the definition is `Shop`"),
        ("<Role name=\"Crunch\">", "<Role name=\"Munch\">", "the definition has no role `Munch`"),
        ("  <Role name=\"Crunch\"><Instances count=\"1\"/></Role>\n", "", "lacks the role `Crunch`"),
        ("<OsImage href=\"hello.vhd\"/>", "", "lacks its base image"),
        ("<Setting name=\"Colour\" value=\"red\"/>", "", "lacks the setting `Colour`"),
        ("name=\"Colour\"", "name=\"Color\"", "the definition has no setting `Color`"),
        ("name=\"Colour\"", "name=\"Color\"", "did you mean `Colour`?"),
        ("Mayfly.UserData", "Mayfly.Userdata", "did you mean `Mayfly.UserData`? Mayfly's settings are Mayfly.Admin"),
        ("Mayfly.UserData", "Mayfly.Zzz", "help: Mayfly's settings are"),
        ("count=\"2\"", "count=\"-2\"", "from 0 to 1000"),
        ("value=\"@setup.sh\"", "value=\"#!/bin/sh\necho a\"", "would be one line"),
        ("<Instances count=\"2\"/>", "", "lacks <Instances>"),
    ] {
        let error = configuration_error(from, to);
        assert!(error.contains(expected), "expected {expected:?} in:\n{error}");
    }
}

#[test]
fn all_errors_are_told_at_once() {
    let text = DEFINITION.replace("vmsize=\"ExtraSmall\"", "vmsize=\"Tiny\"").replace("port=\"80\"", "port=\"0\"");
    let errors = parse_definition(&source("a.csdef", &text)).unwrap_err();
    assert_eq!(errors.0.len(), 2, "{errors}");
}

#[test]
fn bytes_that_are_not_text_are_an_error() {
    assert!(Source::new("x", b"\xff\xfe<\0").unwrap_err().to_string().contains("not UTF-8"));
    for bytes in [&b""[..], b"<", b"<a", b"\0", b"<!DOCTYPE a [<!ENTITY b \"c\">]><a>&b;</a>", "<ä/>".as_bytes()] {
        let source = Source::new("x", bytes).unwrap();
        assert!(parse_definition(&source).is_err() && parse_configuration(&source).is_err());
    }
}

const ACCESS: &str = "Microsoft.WindowsAzure.Plugins.RemoteAccess.";

/// What is said of a role with a certificate and remote access, of which this is replaced by that.
fn access_error(from: &str, to: &str) -> Result<(), String> {
    let definition = DEFINITION.replace(
        "<ConfigurationSettings>",
        "<Certificates><Certificate name=\"Site\" storeLocation=\"LocalMachine\" storeName=\"My\"/></Certificates>\
         <Imports><Import moduleName=\"RemoteAccess\"/></Imports><ConfigurationSettings>",
    );
    let setting = |name: &str, value: &str| format!("<Setting name=\"{ACCESS}{name}\" value=\"{value}\"/>");
    let settings: String = [
        setting("Enabled", "true"),
        setting("AccountUsername", "ada"),
        setting("AccountEncryptedPassword", &"MIIB".repeat(20)),
        setting("AccountExpiration", "2039-12-31T23:59:59"),
    ]
    .concat();
    let thumbprint = "ab:cd".repeat(10);
    let certificate = |name: &str| format!("<Certificate name=\"{name}\" thumbprint=\"{thumbprint}\"/>");
    let certificates = [certificate("Site"), certificate(&format!("{ACCESS}PasswordEncryption"))].concat();
    let configuration = CONFIGURATION.replacen(
        "</ConfigurationSettings>",
        &format!("{settings}</ConfigurationSettings><Certificates>{certificates}</Certificates>"),
        1,
    );
    let all = format!("{definition}|{configuration}");
    assert!(all.contains(from), "nothing is replaced");
    let all = all.replacen(from, to, 1);
    let (definition, configuration) = all.split_once('|').unwrap();
    let definition = parse_definition(&source("a.csdef", definition)).map_err(|error| error.to_string())?;
    let source = source("a.cscfg", configuration);
    let checked = parse_configuration(&source).and_then(|read| check(&definition, &read, &source).map(|()| read));
    let read = checked.map_err(|error| error.to_string())?;
    assert_eq!(read.roles[0].certificates[0].1.as_str(), "ABCD".repeat(10));
    Ok(())
}

#[test]
fn certificates_and_remote_access_have_to_fit() {
    access_error("ada", "ada").unwrap();
    for (from, to, why) in [
        ("name=\"Site\" thumb", "name=\"Sight\" thumb", "the definition has no certificate `Sight`"),
        (
            "<Certificate name=\"Site\" thumbprint=\"ab:cd",
            "<Certificate name=\"Site\" thumbprint=\"",
            "is no thumbprint",
        ),
        ("\"ada\"", "\"Ada\"", "no name for a user"),
        ("\"MIIB", "\"secret", "no password in an envelope"),
        ("\"true\"", "\"false\"", ""),
        ("2039-12-31T23:59:59", "2039-02-29", "is no time"),
        ("\"ada\"", "\"\"", "no name for a user"),
        ("<Imports><Import moduleName=\"RemoteAccess\"/></Imports>", "", "does not import it"),
    ] {
        match access_error(from, to) {
            Ok(()) => assert!(why.is_empty(), "{why}"),
            Err(said) => assert!(!why.is_empty() && said.contains(why), "{said}"),
        }
    }
}
