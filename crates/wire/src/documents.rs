//! The wire server's documents, in the shapes that the public Linux agents accept.

use mayfly_model::GuestCertificate;
use quick_xml::escape::escape;

use crate::guest::{Guest, Member, MemberEndpoint};

/// The protocol versions that are spoken: today's agents ask for the first, those of Windows images for the second, the
/// first agents for the last two.
pub(crate) fn versions() -> String {
    let versions = ["2012-11-30", "2015-04-05", "2011-12-31", "2011-08-31"];
    let supported: String = versions.iter().map(|version| format!("<Version>{version}</Version>")).collect();
    document(&format!(
        "<Versions><Preferred><Version>{}</Version></Preferred><Supported>{supported}</Supported></Versions>",
        versions[0]
    ))
}

pub(crate) fn goal_state(guest: &Guest) -> String {
    let (incarnation, container, instance) = (guest.incarnation, guest.container_id(), guest.instance_id());
    // Agents send the address back as they find it here, where the original has the underscore escaped.
    let base = format!("http://168.63.129.16:80/machine/{container}/{}?comp=", instance.replace('_', "%5F"));
    let certificates = match guest.goal.guest.own_certificates().next() {
        None => String::new(),
        Some(_) => {
            let address = format!("{base}certificates&incarnation={incarnation}");
            format!("<Certificates>{}</Certificates>", escape(address))
        }
    };
    let config = |kind: &str| escape(format!("{base}config&type={kind}&incarnation={incarnation}")).into_owned();
    // The first agents end their guest by themselves when they read this; the power button is for all others.
    let expected = if guest.planned.is_some() { "Stopped" } else { "Started" };
    let patience = u64::from(guest.goal.guest.shutdown_seconds) * 1000;
    document(&format!(
        "<GoalState xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\" \
         xsi:noNamespaceSchemaLocation=\"goalstate10.xsd\"><Version>2012-11-30</Version>\
         <Incarnation>{incarnation}</Incarnation><Machine><ExpectedState>{expected}</ExpectedState>\
         <StopRolesDeadlineHint>{patience}</StopRolesDeadlineHint><LBProbePorts><Port>16001</Port></LBProbePorts>\
         <ExpectHealthReport>FALSE</ExpectHealthReport></Machine><Container><ContainerId>{container}</ContainerId>\
         <RoleInstanceList><RoleInstance><InstanceId>{}</InstanceId><State>Started</State><Configuration>\
         <HostingEnvironmentConfig>{}</HostingEnvironmentConfig><SharedConfig>{}</SharedConfig>\
         <ExtensionsConfig>{}</ExtensionsConfig><FullConfig>{}</FullConfig>{certificates}\
         <ConfigName>{}</ConfigName></Configuration></RoleInstance>\
         </RoleInstanceList></Container></GoalState>",
        escape(&instance),
        config("hostingEnvironmentConfig"),
        config("sharedConfig"),
        config("extensionsConfig"),
        config("fullConfig"),
        escape(guest.config_name()),
    ))
}

pub(crate) fn hosting_environment(guest: &Guest) -> String {
    document(&hosting_environment_element(guest))
}

fn hosting_environment_element(guest: &Guest) -> String {
    let setting = |(name, value): (&String, &String)| {
        format!("<Setting name=\"{}\" value=\"{}\"/>", escape(name), attribute(value))
    };
    let settings: String = guest.goal.settings.iter().map(setting).collect();
    let named = |one: &GuestCertificate| {
        format!("<Setting name=\"Certificate|{}\" value=\"sha1:{}\"/>", escape(&one.definition.name), one.thumbprint)
    };
    let named: String = guest.goal.guest.own_certificates().map(named).collect();
    let stored = |one: &GuestCertificate| {
        let level = if one.definition.store_location == "CurrentUser" { "User" } else { "System" };
        format!(
            "<StoredCertificate name=\"Stored0{}\" certificateId=\"sha1:{}\" storeName=\"{}\" configurationLevel=\"{level}\"/>",
            escape(&one.definition.name),
            one.thumbprint,
            escape(&one.definition.store_name)
        )
    };
    let stored: String = guest.goal.guest.own_certificates().map(stored).collect();
    let storage: String = guest
        .goal
        .guest
        .local_storage
        .iter()
        .map(|one| {
            format!(
                "<Resource name=\"{}\" type=\"DirectoryQuota\" request=\"{}\" sticky=\"{}\" size=\"{}\"/>",
                escape(&one.name),
                escape(format!("{}.{}", guest.goal.deployment_id, one.name)),
                !one.clean_on_role_recycle,
                one.size_mb
            )
        })
        .collect();
    format!(
        "<HostingEnvironmentConfig version=\"1.0.0.0\" goalStateIncarnation=\"{}\"><StoredCertificates>{stored}</StoredCertificates>{}\
         <HostingEnvironmentSettings name=\"full\" Runtime=\"mayfly\"><CAS mode=\"full\"/><PrivilegeLevel mode=\"max\"/>\
         <AdditionalProperties><CgiHandlers></CgiHandlers></AdditionalProperties></HostingEnvironmentSettings>\
         <ApplicationSettings>{named}{settings}</ApplicationSettings>\
         <ResourceReferences>{storage}</ResourceReferences></HostingEnvironmentConfig>",
        guest.incarnation,
        role(guest)
    )
}

pub(crate) fn shared_config(guest: &Guest) -> String {
    document(&shared_config_element(guest))
}

fn shared_config_element(guest: &Guest) -> String {
    // Each instance is named, its own first, as the original's agents expect it.
    let own = |member: &&Member| member.dip == guest.goal.dip;
    let members = guest.members.iter().filter(own).chain(guest.members.iter().filter(|member| !own(member)));
    let instances: String = members.map(|member| member_element(guest, member)).collect();
    format!(
        "<SharedConfig version=\"1.0.0.0\" goalStateIncarnation=\"{}\">{}<LoadBalancerSettings timeoutSeconds=\"0\" \
         waitLoadBalancerProbeCount=\"8\"><Probes><Probe name=\"{}\"/></Probes></LoadBalancerSettings><OutputEndpoints/>\
         <Instances>{instances}</Instances></SharedConfig>",
        guest.incarnation,
        role(guest),
        escape(guest.goal.instance.role.as_str()),
    )
}

fn member_element(guest: &Guest, member: &Member) -> String {
    let endpoint = |one: &MemberEndpoint| {
        let protocol = if one.udp { "udp" } else { "tcp" };
        format!(
            "<Endpoint name=\"{}\" address=\"{}:{}\" protocol=\"{protocol}\" isPublic=\"true\" \
             loadBalancedPublicAddress=\"{}:{}\" enableDirectServerReturn=\"false\" isDirectAddress=\"false\" \
             disableStealthMode=\"false\"><LocalPorts><LocalPortRange from=\"{}\" to=\"{}\"/></LocalPorts></Endpoint>",
            escape(&one.name),
            member.dip,
            one.local_port,
            one.vip,
            one.port,
            one.local_port,
            one.local_port
        )
    };
    let endpoints: String = member.endpoints.iter().map(endpoint).collect();
    // Whose fault domain is known is the guest's own; of the others only what an application can use.
    let fault =
        if member.dip == guest.goal.dip { escape(&guest.goal.fault_domain).into_owned() } else { String::new() };
    format!(
        "<Instance id=\"{}\" address=\"{}\"><FaultDomains randomId=\"{}\" updateId=\"{}\" updateCount=\"0\" name=\"{fault}\"/>\
         <InputEndpoints>{endpoints}</InputEndpoints></Instance>",
        escape(member.name()),
        member.dip,
        member.index,
        member.update_domain,
    )
}

/// A guest's certificates in an envelope, which is base64 already.
pub(crate) fn certificates(guest: &Guest, envelope: &str) -> String {
    let lines: Vec<&[u8]> = envelope.as_bytes().chunks(64).collect();
    let lines: Vec<_> = lines.into_iter().map(String::from_utf8_lossy).collect();
    document(&format!(
        "<CertificateFile xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\" \
         xsi:noNamespaceSchemaLocation=\"certificates10.xsd\"><Version>2012-11-30</Version>\
         <Incarnation>{}</Incarnation><Format>Pkcs7BlobWithPfxContents</Format><Data>{}</Data></CertificateFile>",
        guest.incarnation,
        lines.join("\n")
    ))
}

pub(crate) fn extensions_config(guest: &Guest) -> String {
    // Without somewhere to put its status, an agent never tells it.
    let blob = format!("http://168.63.129.16:80/status/{}", guest.container_id());
    document(&format!(
        "<Extensions version=\"1.0.0.0\" goalStateIncarnation=\"{}\"><GuestAgentExtension \
         xmlns:i=\"http://www.w3.org/2001/XMLSchema-instance\"><GAFamilies/></GuestAgentExtension><Plugins/>\
         <PluginSettings/><StatusUploadBlob statusBlobType=\"BlockBlob\">{}</StatusUploadBlob></Extensions>",
        guest.incarnation,
        escape(blob)
    ))
}

/// Both configurations in one.
pub(crate) fn full_config(guest: &Guest) -> String {
    document(&format!(
        "<RoleInstanceConfig version=\"1.0.0.0\">{}{}</RoleInstanceConfig>",
        hosting_environment_element(guest),
        shared_config_element(guest)
    ))
}

fn role(guest: &Guest) -> String {
    let (deployment, service) = (&guest.goal.deployment_id, &guest.goal.instance.deployment.service);
    let guid = format!("{{{}}}", guest.container_id());
    format!(
        "<Deployment name=\"{deployment}\" guid=\"{guid}\" incarnation=\"0\" \
         isNonCancellableTopologyChangeEnabled=\"false\"><Service name=\"{service}\" guid=\"{guid}\"/>\
         <ServiceInstance name=\"{deployment}.0\" guid=\"{guid}\"/></Deployment>\
         <Incarnation number=\"{}\" instance=\"{}\" guid=\"{guid}\"/><Role guid=\"{guid}\" name=\"{}\" settleTimeSeconds=\"0\"/>",
        guest.incarnation,
        escape(guest.goal.instance.name()),
        escape(guest.goal.instance.role.as_str()),
    )
}

/// An attribute's value, with line ends that survive the reading of attributes.
fn attribute(text: &str) -> String {
    escape(text).replace('\r', "&#13;").replace('\n', "&#10;").replace('\t', "&#9;")
}

fn document(body: &str) -> String {
    format!("<?xml version=\"1.0\" encoding=\"utf-8\"?>{body}")
}
