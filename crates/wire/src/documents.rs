//! The wire server's documents, in the shapes that the public Linux agents accept.

use quick_xml::escape::escape;

use crate::guest::Guest;

/// The protocol versions that are spoken: today's agents ask for the first, the first agents for the last two.
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
    let config = |kind: &str| escape(format!("{base}config&type={kind}&incarnation={incarnation}")).into_owned();
    let (name, deployment) = (guest.goal.instance.name(), &guest.goal.deployment_id);
    document(&format!(
        "<GoalState xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\" \
         xsi:noNamespaceSchemaLocation=\"goalstate10.xsd\"><Version>2012-11-30</Version>\
         <Incarnation>{incarnation}</Incarnation><Machine><ExpectedState>Started</ExpectedState>\
         <StopRolesDeadlineHint>300000</StopRolesDeadlineHint><LBProbePorts><Port>16001</Port></LBProbePorts>\
         <ExpectHealthReport>FALSE</ExpectHealthReport></Machine><Container><ContainerId>{container}</ContainerId>\
         <RoleInstanceList><RoleInstance><InstanceId>{}</InstanceId><State>Started</State><Configuration>\
         <HostingEnvironmentConfig>{}</HostingEnvironmentConfig><SharedConfig>{}</SharedConfig>\
         <ExtensionsConfig>{}</ExtensionsConfig>\
         <ConfigName>{deployment}.0.{deployment}.0._{}.1.xml</ConfigName></Configuration></RoleInstance>\
         </RoleInstanceList></Container></GoalState>",
        escape(&instance),
        config("hostingEnvironmentConfig"),
        config("sharedConfig"),
        config("extensionsConfig"),
        escape(&name),
    ))
}

pub(crate) fn hosting_environment(guest: &Guest) -> String {
    let settings: String = guest
        .goal
        .settings
        .iter()
        .map(|(name, value)| format!("<Setting name=\"{}\" value=\"{}\"/>", escape(name), attribute(value)))
        .collect();
    document(&format!(
        "<HostingEnvironmentConfig version=\"1.0.0.0\" goalStateIncarnation=\"{}\"><StoredCertificates/>{}\
         <HostingEnvironmentSettings name=\"full\" Runtime=\"mayfly\"><CAS mode=\"full\"/><PrivilegeLevel mode=\"max\"/>\
         <AdditionalProperties><CgiHandlers></CgiHandlers></AdditionalProperties></HostingEnvironmentSettings>\
         <ApplicationSettings>{settings}</ApplicationSettings><ResourceReferences/></HostingEnvironmentConfig>",
        guest.incarnation,
        role(guest)
    ))
}

pub(crate) fn shared_config(guest: &Guest) -> String {
    let goal = &guest.goal;
    document(&format!(
        "<SharedConfig version=\"1.0.0.0\" goalStateIncarnation=\"{}\">{}<LoadBalancerSettings timeoutSeconds=\"0\" \
         waitLoadBalancerProbeCount=\"8\"><Probes><Probe name=\"{}\"/></Probes></LoadBalancerSettings><OutputEndpoints/>\
         <Instances><Instance id=\"{}\" address=\"{}\"><FaultDomains randomId=\"0\" updateId=\"{}\" updateCount=\"0\"/>\
         <InputEndpoints/></Instance></Instances></SharedConfig>",
        guest.incarnation,
        role(guest),
        escape(goal.instance.role.as_str()),
        escape(goal.instance.name()),
        goal.dip,
        goal.update_domain,
    ))
}

pub(crate) fn extensions_config(guest: &Guest) -> String {
    document(&format!(
        "<Extensions version=\"1.0.0.0\" goalStateIncarnation=\"{}\"><GuestAgentExtension \
         xmlns:i=\"http://www.w3.org/2001/XMLSchema-instance\"><GAFamilies/></GuestAgentExtension><Plugins/>\
         <PluginSettings/></Extensions>",
        guest.incarnation
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
